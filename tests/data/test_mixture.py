"""Several data sets in one training: who is drawn, in whose words, and that nothing depends on processes or resumes."""

import pickle
from collections import Counter
from itertools import islice

import pytest
import torch

from partseg.data.dataset import PartSegDataset
from partseg.data.loader import BLOCK, TrainSampler, build_train_loader
from partseg.data.mapper import TrainMapper
from partseg.data.mixture import Mixture, Source, mixture
from partseg.labels import IGNORE_LABEL
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary

PETS = Vocabulary.from_mapping({"dog": ["head", "tail"], "cat": ["head"]}, name="pets")
CARS = Vocabulary(
    pairs=(("car", "wheel"), ("dog", "head")),
    label_objects=("road", "car", "dog"),
    name="cars",
    prompt_names={"wheel": "tyre"},
)


@pytest.fixture
def dataset(tmp_path, image_writer, rectangle):
    """Function: vocabulary, number of records -> a training set whose only label is its last object-part."""

    def build(vocabulary, count, *, size=8, seed=0):
        records = []
        for i in range(count):
            path = tmp_path / f"{vocabulary.name}_{i}.png"
            image_writer(path, height=12, width=12, seed=i)
            label = Annotation("object_part", len(vocabulary) - 1, rectangle(0, 0, 12, 12))
            records.append(Record(f"{vocabulary.name}_{i}", str(path), annotations=(label,)))
        words = {"label_vocabulary": vocabulary, "vocabulary": vocabulary, "name": vocabulary.name, "seed": seed}
        return PartSegDataset(records, mapper=TrainMapper(size, jitter=0.2), **words)

    return build


@pytest.fixture
def both(dataset):
    return Mixture([Source("pets", dataset(PETS, 3)), Source("cars", dataset(CARS, 5), weight=2.0)])


def stream(count, **options):
    options = {"micro_batch_size": 4, "weights": (1.0, 3.0), "seed": 7, **options}
    return list(islice(TrainSampler([7, 3], **options), count))


# Order ----------------------------------------------------------------------------------------------------------------
def test_all_ranks_draw_the_same_source_and_share_its_batch():
    single = stream(4 * 50)
    for world_size in (2, 4):
        local = 4 // world_size
        ranks = [stream(local * 50, rank=rank, world_size=world_size) for rank in range(world_size)]
        joined = [item for g in range(50) for rank in ranks for item in rank[g * local : (g + 1) * local]]
        assert joined == single
    sources = [source for source, _, _ in single]
    assert all(len(set(sources[i : i + 4])) == 1 for i in range(0, 200, 4)) and set(sources) == {0, 1}


def test_each_source_counts_and_shuffles_its_own_records():
    items = stream(4 * 120)
    for source, length in enumerate((7, 3)):
        own = [(index, draw) for which, index, draw in items if which == source]
        assert [draw for _, draw in own] == list(range(len(own)))
        for start in range(0, len(own) - length, length):
            assert sorted(index for index, _ in own[start : start + length]) == list(range(length))


def test_sources_are_drawn_in_proportion_to_their_weights():
    drawn = Counter(source for source, _, _ in stream(2000, micro_batch_size=1))
    assert drawn[1] / 2000 == pytest.approx(0.75, abs=0.03)  # three standard deviations
    other = Counter(source for source, _, _ in stream(2000, micro_batch_size=1, seed=8, weights=(30, 90)))
    assert other[1] / 2000 == pytest.approx(0.75, abs=0.03) and other != drawn


@pytest.mark.parametrize("start", [1, 5, 17, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK + 1])
def test_a_resumed_stream_is_the_tail(start):
    """Also across the blocks of which sources are drawn together."""
    whole = stream(start + 8, micro_batch_size=1)
    assert stream(8, micro_batch_size=1, start=start) == whole[start:]


# Batches --------------------------------------------------------------------------------------------------------------
def batches(mixed, count=12, **options):
    return list(islice(build_train_loader(mixed, **{"batch_size": 2, "seed": 3, **options}), count))


def same(a, b):
    assert (a.names, a.source, a.vocabulary) == (b.names, b.source, b.vocabulary)
    assert torch.equal(a.images, b.images) and torch.equal(a.object_part, b.object_part)


def test_batches_are_of_one_source_in_its_own_vocabulary(both):
    found = batches(both)
    assert {batch.source for batch in found} == {"pets", "cars"}
    for batch in found:
        vocabulary = {"pets": PETS, "cars": CARS}[batch.source]
        assert batch.vocabulary is vocabulary
        assert {name.partition("_")[0] for name in batch.names} == {batch.source}
        assert batch.object_part.unique().tolist() == [len(vocabulary) - 1]


def test_a_resumed_loader_gives_the_tail(both):
    whole = batches(both, 10)
    for accumulation in (1, 2):
        steps = batches(both, 10, accumulation=accumulation, batch_size=2 * accumulation)
        tail = batches(both, 4, accumulation=accumulation, batch_size=2 * accumulation, start_iter=3)
        for a, b in zip(steps[3 * accumulation :], tail):
            same(a, b)
        for a, b in zip(steps, whole):
            same(a, b)  # micro-batches are the unit: accumulation does not change what they hold


def test_processes_share_the_batches_of_a_mixture(both):
    whole = batches(both, 6, batch_size=4)
    ranks = [batches(both, 6, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    for all_, first, second in zip(whole, *ranks, strict=True):
        assert first.source == second.source == all_.source
        assert torch.equal(torch.cat([first.images, second.images]), all_.images)


def test_workers_change_nothing_and_bring_the_same_vocabulary(both):
    """A vocabulary that comes out of a process is one object for all batches, so that `is` and caches hold."""
    alone, workers = batches(both, 8), batches(both, 8, num_workers=2)
    for a, b in zip(alone, workers, strict=True):
        assert a.names == b.names and a.vocabulary.key == b.vocabulary.key and torch.equal(a.images, b.images)
    assert len({id(batch.vocabulary) for batch in workers}) == 2


def test_a_pickled_vocabulary_is_the_same_object():
    for vocabulary in (PETS, CARS):
        copies = [pickle.loads(pickle.dumps(vocabulary)) for _ in range(3)]
        assert copies[0] is copies[1] is copies[2]
        assert copies[0] == vocabulary and copies[0].name == vocabulary.name and copies[0].key == vocabulary.key
    assert pickle.loads(pickle.dumps(CARS)).prompt_names == {"wheel": "tyre"}
    assert pickle.loads(pickle.dumps(PETS)) is not pickle.loads(pickle.dumps(CARS))


def test_a_single_data_set_is_what_it_was(dataset):
    """The mixture of one data set: its vocabulary, its name, and the samples in the order of the plain sampler."""
    alone = dataset(PETS, 3)
    mixed = Mixture.of(alone)
    assert mixed.vocabulary is PETS and mixed.name == "pets" and len(mixed) == 3 and Mixture.of(mixed) is mixed
    order = list(islice(TrainSampler([3], micro_batch_size=2, seed=3), 12))
    for i, (one, two) in enumerate(zip(batches(alone, 6), batches(mixed, 6), strict=True)):
        same(one, two)
        assert one.source == "pets"
        for image, (_, index, draw) in zip(one.images, order[2 * i : 2 * i + 2], strict=True):
            assert torch.equal(image, alone[index, draw].image)


# The mixture ----------------------------------------------------------------------------------------------------------
def test_the_vocabulary_names_everything_once(both):
    assert both.vocabulary.pairs == (("dog", "head"), ("dog", "tail"), ("cat", "head"), ("car", "wheel"))
    assert both.vocabulary.label_objects == ("dog", "cat", "road", "car")
    assert both.vocabulary.prompt_names == {"wheel": "tyre"} and both.vocabulary.seen.all()
    assert len(both) == 8


def test_a_subset_cuts_every_source(both):
    cut = both.subset([0, 1, 3])
    assert [[r.image_id for r in s.dataset.records] for s in cut.sources] == [
        ["pets_0", "pets_1"],
        ["cars_0", "cars_1", "cars_3"],
    ]
    assert [source.weight for source in cut.sources] == [1.0, 2.0]


def test_an_object_of_one_data_set_is_no_part_of_another(dataset):
    heads = Vocabulary(pairs=(("dog head", "ear"),), label_objects=("dog head",), name="heads")
    with pytest.raises(ValueError, match="'dog head' is an object in 'heads' and the part 'head' of 'dog' in 'pets'"):
        Mixture([Source("pets", dataset(PETS, 1)), Source("heads", dataset(heads, 1))])
    Mixture([Source("cars", dataset(CARS, 1)), Source("heads", dataset(PETS, 1))])


def test_sources_are_built_with_split_seed_and_mapper(dataset):
    calls = []

    def builder(**options):
        calls.append(options)
        return dataset(PETS, 2, seed=options["seed"])

    common, own = TrainMapper(8), TrainMapper(16)
    sources = {"a": {"dataset": builder}, "b": {"dataset": builder, "weight": 3, "mapper": own}}
    built = mixture(sources, "train", mapper=common, seed=5)
    assert calls == [{"split": "train", "mapper": common, "seed": 5}, {"split": "train", "mapper": own, "seed": 5}]
    assert [(source.name, source.weight) for source in built.sources] == [("a", 1.0), ("b", 3.0)]


def test_wrong_mixtures_are_refused(dataset):
    with pytest.raises(ValueError, match="at least one data set: dataset.sources is empty"):
        Mixture([])
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="weights must be positive, got {'pets': "):
            Mixture([Source("pets", dataset(PETS, 1), weight=weight)])
    with pytest.raises(ValueError, match=r"dataset\.sources\.a holds \['datset'\]; give it 'dataset'"):
        mixture({"a": {"datset": None}}, "train")
    with pytest.raises(ValueError, match=r"dataset\.sources\.a holds \['dataset', 'wieght'\]"):
        mixture({"a": {"dataset": None, "wieght": 1}}, "train")
    with pytest.raises(ValueError, match="dataset.order='loop' is not one of"):
        Mixture([Source("pets", dataset(PETS, 1))], order="loop")
    with pytest.raises(ValueError, match=r"order=turns needs whole numbers as weights, got {'pets': 0.5}"):
        Mixture([Source("pets", dataset(PETS, 1), weight=0.5)], order="turns")
    with pytest.raises(ValueError, match=r"labels {'pets': 'some'} must be some of"):
        Mixture([Source("pets", dataset(PETS, 1), labels="some")])


# Turns, and pictures without labels -----------------------------------------------------------------------------------
def test_in_turns_every_step_sees_every_source():
    """Also across blocks: weights 1 and 3 are one micro-batch in four."""
    micro_batches = stream(2 * BLOCK + 8, micro_batch_size=1, in_turns=True)
    assert [source for source, _, _ in micro_batches] == [0, 1, 1, 1] * (BLOCK // 2 + 2)
    for start in (1, BLOCK - 1, BLOCK + 2):
        assert stream(6, micro_batch_size=1, in_turns=True, start=start) == micro_batches[start : start + 6]


def test_half_of_every_step_is_unlabelled(dataset):
    sources = [Source("pets", dataset(PETS, 3)), Source("photos", dataset(CARS, 5), labels="none")]
    mixed = Mixture(sources, order="turns")
    assert mixed.vocabulary is PETS, "what nobody labelled names no class"
    assert mixed.subset([0]).order == "turns" and [s.labels for s in mixed.subset([0]).sources] == ["annotated", "none"]
    found = batches(mixed, 6, batch_size=4, accumulation=2)
    assert [batch.source for batch in found] == ["pets", "photos"] * 3
    for batch in found:
        nothing = batch.source == "photos"
        assert (batch.object_part == IGNORE_LABEL).all() == nothing and (batch.object == IGNORE_LABEL).all() == nothing


def test_a_picture_without_labels_keeps_the_object_that_is_told(dataset):
    about = TrainMapper(8, about="object", instances="classes")
    source = dataset(PETS, 1)
    source.mapper = about
    labelled, blank = source[0], source[0].unlabelled()
    assert len(labelled.instances) == 2 and len(blank.instances) == 0
    assert torch.equal(blank.given, labelled.given) and torch.equal(blank.image, labelled.image)


def test_a_source_may_have_its_own_split_and_labels(dataset):
    calls = []

    def builder(**options):
        calls.append(options["split"])
        return dataset(PETS, 1)

    entries = {"a": {"dataset": builder}, "b": {"dataset": builder, "split": "val", "labels": "none", "weight": 2}}
    built = mixture(entries, "train", order="turns")
    assert calls == ["train", "val"] and built.order == "turns"
    assert [(source.labels, source.weight) for source in built.sources] == [("annotated", 1.0), ("none", 2.0)]
