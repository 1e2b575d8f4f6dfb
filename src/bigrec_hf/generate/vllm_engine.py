"""Optional engine of `generate`: vLLM (extra `vllm`, NVIDIA GPUs), with the interface of `decoder.Decoder`.

Written against the documented interface of vLLM 0.22 to 0.33, and not yet run on a GPU. Differences from the built-in
engine: there are no constrained strategies; beams end only at the EOS token of the tokenizer and are chosen by a length
that counts the prompt (the scores here do not); samples are reproducible for a seed and an example, but differ from
those of the built-in engine. The adapter is passed to vLLM, not merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoConfig, GenerationConfig

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.hub_names import fetch_folder, hub_errors
from bigrec_hf.generate.decoder import answer_text, cut_answer
from bigrec_hf.generate.strategy import Decoding, end_token_ids, line_break_ids, uniforms
from bigrec_hf.models.loading import find_model
from bigrec_hf.settings.ray import NO_ACTORS, RaySettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


STRATEGIES = ("beam", "greedy", "sample")  # vLLM's beam search takes no logits processor, so no constraint
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # possible values of vLLM's max_lora_rank
QUANTIZATIONS = {"none": None, "4bit": "bitsandbytes"}  # 4bit: NF4 while loading, as in the built-in engine


def check_vllm(
    decoding: Decoding, quantization: str, n_processes: int, cluster: RaySettings = NO_ACTORS
) -> dict[str, str]:
    """Return the version of vLLM. Raises BigrecError, before a model is loaded, for what this engine cannot do."""
    if decoding.strategy not in STRATEGIES:
        names = ", ".join(STRATEGIES)
        raise BigrecError(f"engine vllm cannot decode by {decoding.strategy}, only by {names}: use --engine hf")
    if quantization not in QUANTIZATIONS:
        raise BigrecError(f"vLLM cannot quantize to {quantization} while loading: use 4bit or none, or --engine hf")
    if n_processes > 1:
        raise BigrecError(
            "vLLM uses several GPUs in one process: start one process, with --vllm_args '{tensor_parallel_size: 2}'"
        )
    if cluster.num_actors and cluster.device != "cuda":
        raise BigrecError("Ray gives its actors only what they ask for, and vLLM needs a GPU: --resources '{GPU: 1}'")
    try:
        import vllm
    except ImportError as error:
        raise BigrecError(
            f"engine vllm cannot be imported ({error}): pip install 'bigrec_hf[vllm]' (NVIDIA GPUs), or use --engine hf"
        ) from error
    return {"vllm": vllm.__version__}


class VllmDecoder:
    """A vLLM engine with a base model, an adapter and a strategy; the module's docstring lists its limits."""

    def __init__(
        self,
        base_model: str,
        adapter: str | None,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        dtype: str,
        quantization: str,
        max_length: int,
        vllm_args: dict[str, Any],
    ) -> None:
        """`max_length`: tokens of prompt and answer; `vllm_args`: arguments of vllm.LLM that override these."""
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        path, revision = find_model(base_model)
        self.tokenizer, self.decoding = tokenizer, decoding
        self.route = None  # routes are those of the built-in engine
        with hub_errors(base_model):
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
            try:
                generation = GenerationConfig.from_pretrained(path, revision=revision or "main")
            except OSError:  # a model without generation_config.json
                generation = None
        self.end_ids = end_token_ids(tokenizer, config, generation)
        self.cut_ids = set(self.end_ids) | (set() if decoding.has_beams else set(line_break_ids(tokenizer).tolist()))
        options: dict[str, Any] = {
            "model": path,
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": dtype,
            "quantization": QUANTIZATIONS[quantization],
            "max_model_len": max_length,
            "max_logprobs": max(2 * decoding.num_beams, 20),  # beam search requests twice its width
            "generation_config": "vllm",  # ignore the file of the model
            "seed": decoding.seed,
            "trust_remote_code": False,
        }
        self.lora = None
        if adapter is not None:
            folder = fetch_folder(adapter, "model", ["adapter_*"])
            rank = int(read_json(folder / "adapter_config.json").get("r", 0))
            fitting = [size for size in LORA_RANKS if size >= rank]
            if not fitting:
                raise BigrecError(
                    f"the rank {rank} of the adapter exceeds the maximum of vLLM, {LORA_RANKS[-1]}: use --engine hf"
                )
            options |= {"enable_lora": True, "max_lora_rank": fitting[0]}
            self.lora = LoRARequest("adapter", 1, str(folder))
        self.llm = LLM(**(options | vllm_args))

    def decode(
        self, prompts: Sequence[Sequence[int]], example_ids: Sequence[str]
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Return texts and scores for a batch of prompts (token ids), best first, as `Decoder.decode` defines them."""
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self._beams(given) if self.decoding.has_beams else self._sequences(given, example_ids)
        texts, scores = [], []
        for row in answers:
            best = sorted(row, key=lambda answer: -answer[1])[: self.decoding.n_texts]  # stable: ties keep their order
            texts.append([answer_text(self.tokenizer, ids, self.end_ids) for ids, _ in best])
            scores.append([score for _, score in best])
        return texts, scores

    def _beams(self, prompts: list[dict[str, list[int]]]) -> list[list[tuple[list[int], float]]]:
        from vllm.sampling_params import BeamSearchParams

        decoding = self.decoding
        params = BeamSearchParams(
            beam_width=decoding.num_beams,
            max_tokens=decoding.max_new_tokens,
            length_penalty=decoding.length_penalty,
            temperature=0.0,
        )
        outputs = self.llm.beam_search(prompts, params, lora_request=self.lora)
        answers = []
        for prompt, output in zip(prompts, outputs, strict=True):
            row = []
            for beam in output.sequences:
                ids = beam.tokens[len(prompt["prompt_token_ids"]) :]
                score = beam.cum_logprob / max(1, len(ids)) ** decoding.length_penalty
                row.append((cut_answer(ids, self.cut_ids), score))
            answers.append(row)
        return answers

    def _sequences(
        self, prompts: list[dict[str, list[int]]], example_ids: Sequence[str]
    ) -> list[list[tuple[list[int], float]]]:
        from vllm import SamplingParams

        decoding = self.decoding
        common = {"max_tokens": decoding.max_new_tokens, "stop_token_ids": sorted(self.cut_ids), "logprobs": 0}
        if not decoding.is_sampled:
            params = [SamplingParams(n=1, temperature=0.0, **common)] * len(prompts)
        else:
            common |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
            draws = [float(uniforms(decoding.seed, example_id, 0, 1)[0]) for example_id in example_ids]
            params = [SamplingParams(n=decoding.n_texts, seed=int(draw * 2**31), **common) for draw in draws]
        outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=self.lora)
        answers = []
        for output in outputs:
            row = []
            for sequence in output.outputs:
                ids = cut_answer(list(sequence.token_ids), self.cut_ids)
                steps = zip(ids, sequence.logprobs, strict=False)  # the answer may be cut before its last step
                row.append((ids, float(np.mean([step[token].logprob for token, step in steps]))))
            answers.append(row)
        return answers
