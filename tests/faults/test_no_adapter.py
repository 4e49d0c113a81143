"""`model.adapter_ratio=null` is one override, whatever the list of trained parameters says of the adapter."""

import pytest

from partseg.utils.config import compose, instantiate


@pytest.mark.parametrize("model", ["clipseg", "part_clipseg"])
@pytest.mark.parametrize("trainable", ["[adapter.*,decoder.*]", "['adapter*',decoder.*]"])
def test_a_model_without_adapter_trains_the_rest(model, trainable):
    config = compose("train", [f"model={model}_tiny", "model.adapter_ratio=null", f"model.trainable={trainable}"])
    network = instantiate(config.model)
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert network.adapter is None and trained == {"decoder", "background", "backbone"}


def test_other_patterns_that_match_nothing_are_still_refused():
    overrides = ["model=clipseg_tiny", "model.adapter_ratio=null", "model.trainable=[adaptre.*,decoder.*]"]
    with pytest.raises(ValueError, match=r"trainable patterns \['adaptre\.\*'\] match no parameter"):
        instantiate(compose("train", overrides).model)
    with pytest.raises(ValueError, match="match no parameter"):
        instantiate(compose("train", ["model=clipseg_tiny", "model.trainable=[adaptor.*,decoder.*]"]).model)
