"""Every architecture: greedy and beams equal transformers' own generate, the memory formula its real cache."""

import pytest
import torch
from transformers import GenerationConfig

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.kv_cache import is_repeatable, prefix_cache
from bigrec_hf.generate.memory import cache_bytes
from bigrec_hf.generate.strategy import Decoding
from tests.helpers.architectures import ARCHITECTURES, tiny_architecture
from tests.helpers.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow
TEXTS = ("Toy Story, Heat and some more of them", "nothing", "Babe")
WITHOUT_BEAMS = {"rwkv"}  # transformers cannot reorder its states


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoding_equals_stock_generate(name):
    tokenizer, model = tiny_tokenizer(padding_side="left"), tiny_architecture(name)
    prompts = [tokenizer(f"The user has watched the following movies before:{text}\n")["input_ids"] for text in TEXTS]
    prefix = prompts[0][: common_prefix_length(prompts)]
    for decoding in (Decoding("greedy", max_new_tokens=6), Decoding("beam", num_beams=3, max_new_tokens=6)):
        ours = Decoder(model, tokenizer, decoding, shared_prefix=prefix)
        if decoding.has_beams and name in WITHOUT_BEAMS:
            with pytest.raises(BigrecError, match="cannot use beam search"):
                ours.decode(prompts, list("abc"))
            continue
        texts, scores = ours.decode(prompts, list("abc"))
        n = decoding.rows_per_prompt
        for row, prompt in enumerate(prompts):
            output = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=GenerationConfig(
                    max_new_tokens=6,
                    num_beams=n,
                    num_return_sequences=n,
                    eos_token_id=2,
                    pad_token_id=3,
                    return_dict_in_generate=True,
                    output_scores=True,
                ),
            )
            answers = tokenizer.batch_decode(output.sequences[:, len(prompt) :], skip_special_tokens=True)
            assert texts[row] == [parse_answer(answer) for answer in answers]
            if decoding.has_beams:
                torch.testing.assert_close(torch.tensor(scores[row]), output.sequences_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_memory_formula_gives_the_real_cache(name):
    model = tiny_architecture(name)
    if not is_repeatable(model):
        pytest.skip("its cache holds more than keys and values")
    layers = prefix_cache(model, list(range(5, 25))).layers
    assert cache_bytes(model.config, 4, 20) == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
