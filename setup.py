"""Packaging of bigrec_hf.

The metric, the recipes, the accelerate configurations and the data set cards live at the top level of the repository
(the metric folder is also a Hub Space of its own); `package_dir` maps them into the package so that the wheel, the
editable install and `evaluate.load("metrics/ndcg_hr")` all use the same files.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# package -> top-level folder that holds it
MAPPED = {
    "bigrec_hf.metrics": "metrics",
    "bigrec_hf.metrics.ndcg_hr": "metrics/ndcg_hr",
    "bigrec_hf.recipes_data": "recipes",
    "bigrec_hf.accelerate_configs": "accelerate_configs",
    "bigrec_hf.dataset_cards": "dataset_cards",
}

setup(
    name="bigrec_hf",
    version="0.1.0",
    description="BIGRec on the Hugging Face stack: generate the next item's title, ground it to the catalog, score it",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The bigrec_hf authors",
    keywords=["recommender systems", "large language models", "BIGRec", "LoRA", "NDCG", "Hugging Face"],
    project_urls={"Paper": "https://arxiv.org/abs/2308.08434"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages("src"), *MAPPED],
    package_dir={"": "src", **MAPPED},
    package_data={
        "bigrec_hf": ["py.typed"],
        "bigrec_hf.hub": ["templates/*.md"],
        "bigrec_hf.report": ["*.csv", "templates/*.html"],
        "bigrec_hf.metrics.ndcg_hr": ["README.md", "requirements.txt"],
        "bigrec_hf.recipes_data": ["*.md", "**/*.yaml", "**/*.sh"],
        "bigrec_hf.accelerate_configs": ["*.yaml"],
        "bigrec_hf.dataset_cards": ["*.md"],
    },
    install_requires=[
        "torch>=2.13.0",
        "transformers>=5.23.0",
        "trl>=1.16.0",
        "peft>=0.21.2",
        "datasets>=5.2.0",
        "accelerate>=1.15.0",
        "evaluate>=0.4.6",
        "huggingface_hub>=2.4.0",
        "sentence-transformers>=6.2.0",
        "safetensors>=0.8.0",
        "jinja2>=3.1",
        "matplotlib>=3.11",
        "numpy>=2.4",
        "polars>=2.1",
        "pyarrow>=26",
        "pyyaml>=6",
        "scipy>=1.17",
        "tqdm>=4.67",
    ],
    extras_require={
        "quantization": ["bitsandbytes>=0.50.2"],
        "quickstart": ["gguf>=0.19.0"],
        "demo": ["gradio>=6.31"],
        "vllm": ["vllm>=0.22"],
        "ray": ["ray[data]>=2.60"],
        "bench": ["psutil>=7"],
        "dev": [
            "bitsandbytes>=0.50.2",
            "gguf>=0.19.0",
            "gradio>=6.31",
            "hypothesis>=6.170",
            "import-linter>=2.17",
            "mkdocs-material>=9.8",
            "mkdocstrings[python]>=1.0",
            "mypy>=2.4",
            "pandas>=3.1",
            "pandas-stubs>=3.1",
            "pre-commit>=4.7",
            "psutil>=7",
            "pytest>=9",
            "pytest-cov>=7",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ranx>=0.3.21",
            "ruff>=0.17",
            "scipy-stubs>=1.17",
            "torchmetrics>=1.9",
            "trackio>=0.43",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["bigrec-hf=bigrec_hf.cli:main"]},
)
