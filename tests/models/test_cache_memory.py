"""Every architecture: the memory formula gives the size of the real cache."""

import pytest

from bigrec_hf.generate.kv_cache import is_repeatable, prefix_cache
from bigrec_hf.generate.memory import cache_bytes
from tests.helpers.architectures import ARCHITECTURES, tiny_architecture

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_memory_formula_gives_the_real_cache(name):
    model = tiny_architecture(name)
    if not is_repeatable(model):
        pytest.skip("its cache holds more than keys and values")
    layers = prefix_cache(model, list(range(5, 25))).layers
    assert cache_bytes(model.config, 4, 20) == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
