"""Memory: the formula against real tensors, batches cut to a budget, halved when memory runs out."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.generate import memory
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.kv_cache import pad_prompts, prefix_cache, prompts_cache
from bigrec_hf.generate.memory import GIB, budget, cache_bytes, footprint, is_out_of_memory, weight_bytes
from bigrec_hf.generate.strategy import Decoding
from tests.helpers.architectures import tiny_architecture
from tests.helpers.processes import run_python
from tests.helpers.tiny import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
PROMPTS = [list(range(20, 20 + n)) for n in (12, 12, 9, 8, 8, 7, 5)]
IDS = list("abcdefg")
BEAM = Decoding("beam", num_beams=3, max_new_tokens=5)


def test_llama_7b_by_hand():
    """32 layers x 2 x 4096 numbers of 2 bytes: 512 KiB a token."""
    config = LlamaConfig()  # the sizes of llama-7b
    assert cache_bytes(config, 2, 1) == 512 * 1024
    need = footprint(config, 2, 32, 200, answer=64, copies=4)
    assert need.cache == 32 * 4 * 264 * 512 * 1024
    assert need.logits == 32 * 4 * 32000 * (2 + 6 * 4)
    assert need.activations == 32 * 200 * (4 * 4096 + 3 * 11008) * 2
    assert need.total == need.cache + need.logits + need.activations
    assert footprint(config, 2, 1, 9, answer=1, copies=4, expanded=True).activations == 4 * 9 * 49408 * 2


@pytest.mark.parametrize("name", ["llama", "falcon, rotary", "gpt2", "gemma2", "deepseek_v3", "gpt_bigcode"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_gives_the_size_of_the_real_tensors(name, dtype):
    model = tiny_architecture(name).to(dtype)
    ids, mask = pad_prompts(PROMPTS, 0, 3, CPU)
    cache = prompts_cache(model, prefix_cache(model, []), ids, mask, copies=3, room=1 + 5)
    with torch.inference_mode():  # up to the last token but one: what `generate` feeds
        for step in range(6):
            ones = torch.ones(len(ids) * 3, 1, dtype=torch.long)
            past = torch.cat([mask[:, :-1].repeat_interleave(3, dim=0), ones.expand(-1, step + 1)], dim=1)
            logits = model(input_ids=ones, attention_mask=past, past_key_values=cache).logits
    buffers = [
        [getattr(layer, "_" + kind, getattr(layer, kind)) for kind in ("keys", "values")] for layer in cache.layers
    ]
    need = footprint(model.config, dtype.itemsize, len(PROMPTS), 12, answer=5, copies=3)
    assert need.cache == sum(tensor.nbytes for pair in buffers for tensor in pair)
    assert need.logits == logits.nbytes + memory.FLOAT_COPIES * logits.float().nbytes


def test_weights_count_as_stored_and_once():
    model = tiny_model(tie_word_embeddings=True)
    n_numbers = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert weight_bytes(model) == 4 * n_numbers + buffers
    assert weight_bytes(model.to(torch.bfloat16)) == 2 * n_numbers + sum(b.nbytes for b in model.buffers())


def test_the_budget_is_given_or_what_is_free(monkeypatch):
    assert budget(CPU, 0.5) == GIB // 2
    assert budget(CPU, 0.0) == 4 * GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIB)
    assert budget(torch.device("cuda"), 0.0) == int(0.9 * 12 * GIB)  # what the allocator holds unused is free, too
    assert budget(torch.device("cuda"), 2.0) == 2 * GIB


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.fixture
def sizes(monkeypatch):
    """Numbers of prompts that were decoded together; more than `sizes.fits` raise."""

    class Sizes(list):
        fits = 99

    seen, decode = Sizes(), Decoder._decode

    def counted(self, prompts, *rest):
        seen.append(len(prompts))
        if len(prompts) > seen.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return decode(self, prompts, *rest)

    monkeypatch.setattr(Decoder, "_decode", counted)
    return seen


def decoder(**options):
    prefix = PROMPTS[0][: common_prefix_length(PROMPTS)]
    return Decoder(tiny_model(seed=1), tiny_tokenizer(padding_side="left"), BEAM, shared_prefix=prefix, **options)


def same(found, expected):
    assert found[0] == expected[0]
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(expected[1]), atol=1e-4, rtol=0)


def test_batches_are_cut_to_the_budget(sizes):
    expected = decoder().decode(PROMPTS, IDS)
    of_one = footprint(tiny_model().config, 4, 1, 12, answer=5, copies=3).total
    found = decoder(memory_gib=(2.5 * of_one) / GIB).decode(PROMPTS, IDS)
    same(found, expected)
    assert sizes == [7, 2, 2, 2, 1]
    sizes.clear()
    same(decoder(memory_gib=1e-9).decode(PROMPTS, IDS), expected)
    assert sizes == [1] * 7


def test_out_of_memory_halves_the_batch_and_goes_on(sizes):
    expected = decoder().decode(PROMPTS, IDS)
    sizes.clear()
    sizes.fits = 2
    ours = decoder()
    with pytest.warns(UserWarning, match="out of memory with 7 prompts of 12 tokens: continuing with 3"):
        same(ours.decode(PROMPTS, IDS), expected)
    assert sizes[:3] == [7, 3, 1] and max(sizes[2:]) <= 2
    sizes.clear()
    same(ours.decode(PROMPTS, IDS), expected)  # what did not fit before is not tried again
    assert max(sizes) <= 2


def test_a_single_prompt_that_does_not_fit_is_an_error_with_sizes(sizes):
    sizes.fits = 0
    words = r"one prompt of 12 tokens and 3 beams or samples \(weights 0.00 GiB, cache .* lower num_beams or max_length"
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(BigrecError, match=words):
        decoder().decode(PROMPTS, IDS)


def test_other_errors_are_not_taken_for_memory(sizes, monkeypatch):
    monkeypatch.setattr(Decoder, "_decode", lambda *rest: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        decoder().decode(PROMPTS, IDS)


SCRIPT = """
import resource, sys, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.generate.test_memory import BEAM, Decoder, tiny_model, tiny_tokenizer
model = tiny_model(seed=1, hidden_size=128, num_key_value_heads=4)
prompts, ids = [list(range(20, 140)) for _ in range(256)], [str(i) for i in range(256)]
def texts():
    return Decoder(model, tiny_tokenizer(padding_side="left"), BEAM).decode(prompts, ids)[0]
expected = Decoder(model, tiny_tokenizer(padding_side="left"), BEAM).decode(prompts[:1], ids[:1])[0]
used = int(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert texts() == expected * 256
print([str(w.message) for w in caught])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's limit of the address space")
def test_the_allocators_own_failure(tmp_path):
    """256 prompts take about 400 MiB beside the model, the process may have 200."""
    done = run_python("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 256 prompts of 120 tokens: continuing with 128" in done.stdout
