"""FLOPs against arithmetic by hand, and how cost grows with the vocabulary."""

from partseg.backbones.clip_vit import ClipBackbone
from partseg.engine.benchmark.cost import forward_cost, made_up_vocabulary
from partseg.systems.clipseg.decoder import DecoderShape
from partseg.systems.clipseg.network import ClipSeg


def build(checkpoint=False, **options):
    backbone = ClipBackbone("partseg-tiny-16", feature_blocks=(1, 2, 3))
    return ClipSeg(backbone, decoder=DecoderShape(64, 4, 96), image_size=64, decoder_checkpoint=checkpoint, **options)


def test_flops_grow_by_the_cost_of_a_prompt():
    few, many = (forward_cost(build, made_up_vocabulary(count)) for count in (10, 30))
    tokens, cells = 17, 16
    attention = 4 * 2 * 64 * 64 * tokens + 2 * 2 * tokens * tokens * 64
    layer = attention + 2 * (64 + 64) * 96 * tokens
    head = 2 * cells * (9 * 64 * 64 + 64 * 32 * 16 + 16 * 32 * 16)
    film = 2 * 2 * 128 * 64
    assert many.image_flops - few.image_flops == 20 * (3 * layer + head + film)
    assert many.text_flops > few.text_flops > 0


def test_checkpointing_keeps_less():
    vocabulary = made_up_vocabulary(30)
    kept, recomputed = (forward_cost(lambda c=c: build(c), vocabulary).image_bytes for c in (False, True))
    assert recomputed < 0.4 * kept


def test_a_frozen_text_tower_keeps_nothing():
    vocabulary = made_up_vocabulary(10)
    trained, frozen = (forward_cost(lambda t=t: build(train_text_embeddings=t), vocabulary) for t in (True, False))
    assert frozen.text_bytes == 0 < trained.text_bytes and frozen.text_flops == trained.text_flops


def test_made_up_vocabularies_have_their_size():
    for count in (1, 50, 1000):
        assert len(made_up_vocabulary(count)) == count
