"""Rounds: their images, what they gain, what they refuse, and that nothing is made of nothing."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from deevo_ext.data.images import ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.fitness import probing, sampling
from deevo_ext.fitness.differences import DIRECTIONS, Differences
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import fold_numbers
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.population.genes import Genes
from deevo_ext.population.recipes import after, uniform
from deevo_ext.runs import rounds as module
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.round_preflight import examine_rounds
from deevo_ext.runs.rounds import RoundSearch
from deevo_ext.runs.validation import Validation
from deevo_ext.search import held_out
from support.evolution import top2
from support.operators import num_threads
from support.rounds import Normed, Problem, labelled


def numbers(count: int, labels: Tensor) -> ImageSet:
    """Images that hold their own place."""
    pixels = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 4, 4)
    return ImageSet(pixels.contiguous(), labels, "numbers")


def places(images: ImageSet) -> set[int]:
    return {int(i) for i in images.pixels(0, len(images))[:, 0, 0, 0]}


def held_out_loss(problem: Problem, recipe: Tensor, images: ImageSet) -> float:
    row = problem.blocks.blocks.compose(problem.population, recipe[None])[0]
    return problem.evaluator.score(row, images)


def loss_of_folds(problem: Problem, recipes: Tensor) -> float:
    """The loss of each fold by its own network."""
    numbers = fold_numbers(problem.images.labels, 5, problem.seed)
    losses = torch.empty(len(numbers))
    for k, one in enumerate(recipes):
        row = problem.blocks.blocks.compose(problem.population, one[None])
        fold = problem.images.subset((numbers == k).nonzero().flatten())
        used = problem.evaluator.used_statistics(row, None)
        losses[numbers == k] = problem.evaluator.image_scores(row, fold, problem.metric, used)[0]
    return float(losses.double().mean())


def test_the_parts_of_a_round_are_disjoint_balanced_and_drawn_anew() -> None:
    problem = Problem(images=10)
    labels = torch.arange(3000) % 5
    labels[2000:] = 4
    search = replace(problem.rounds(size=400), images=numbers(3000, labels), fit=400)
    assert not search.few and search.sizes() == (400, 400, 2200)
    seen = []
    for number in (1, 2, 1):
        parts = search.parts(number)
        sets = [places(parts.model), places(parts.choice), places(parts.test)]
        assert [len(one) for one in sets] == [400, 400, 2200]
        assert len(set.union(*sets)) == 3000
        for images in (parts.model, parts.choice, parts.test):
            share = images.labels.bincount(minlength=5) / len(images)
            expected = labels.bincount(minlength=5) / 3000
            assert float((share - expected).abs().max()) <= 3 / len(images)
        seen.append(sets)
    assert seen[0] == seen[2] and all(a != b for a, b in zip(seen[0], seen[1], strict=True))
    assert places(replace(search, seed=1).parts(1).model) != seen[0][0]


@pytest.mark.parametrize("few", [False, True])
def test_a_round_gains_on_images_that_it_has_not_seen(few: bool) -> None:
    problem = Problem(seed=1, images=600)
    recipe = uniform(3, 4, range(4))
    outcome = problem.rounds(few=few).run(recipe, 1, 1.0)
    assert outcome.accepted and outcome.step is not None and not outcome.left_out
    taken = outcome.proposals[outcome.best]
    assert taken.score == min(one.score for one in outcome.proposals)
    made = after(recipe, outcome.step.view_as(recipe), taken.length)
    new = labelled(problem.model, 4000, 77)
    before, then = (held_out_loss(problem, one, new) for one in (recipe, made))
    with torch.no_grad():
        least = float(cross_entropy(problem.model(new.images), new.labels))
    assert least < then < 0.5 * before + 0.5 * least  # half of what there is, at least
    assert {one.proposer for one in outcome.proposals} == {"convex", "de"}
    assert len(outcome.virtual) == 2 and all(len(one.history) == 12 for one in outcome.virtual)
    if few:
        assert outcome.gain < -taken.score  # its own images promise more than it tests
    else:  # what was said of the step is what real networks do on its images
        tested = problem.rounds().parts(1).test
        scores = [held_out_loss(problem, one, tested) for one in (recipe, made)]
        assert outcome.gain == pytest.approx(scores[0] - scores[1], abs=1e-6)
    again = problem.rounds(few=few).run(recipe, 1, 1.0)
    assert again.step is not None and torch.equal(again.step, outcome.step)
    for one, other in zip(again.proposals, outcome.proposals, strict=True):
        assert torch.equal(one.q, other.q)
        assert (one.predicted, one.score) == (other.predicted, other.score)


def test_a_round_along_differences_gains_on_images_that_it_has_not_seen() -> None:
    problem = Problem(seed=1, images=900)
    recipe, probing = uniform(3, 4, range(4)), problem.probing()
    genes = Genes.of(problem.population.layout, probing.blocks)
    along = Differences.of(probing, genes, recipe, 1, problem.seed)
    changes = torch.zeros(len(genes), 4)
    outcome = replace(problem.rounds(size=300), differences=along).run(changes, 1, 1.0)
    assert outcome.accepted and outcome.step is not None and outcome.step.shape == (DIRECTIONS,)
    made = along.after(changes, outcome.step, outcome.proposals[outcome.best].length)
    new = labelled(problem.model, 4000, 77)
    before, then = along.compose(torch.stack([changes, made]))
    assert problem.evaluator.score(then, new) < problem.evaluator.score(before, new)


def test_a_round_on_a_small_model_does_not_depend_on_threads() -> None:
    found = []
    for threads in (1, 2):
        with num_threads(threads):
            outcome = Problem(seed=1).rounds().run(uniform(3, 4, range(4)), 1, 1.0)
            assert torch.get_num_threads() == threads
        found.append((outcome.step, outcome.gain, outcome.held_out))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]


def test_steps_are_as_long_as_the_radius_lets_them() -> None:
    problem = Problem(seed=1)
    recipe = uniform(3, 4, range(4))
    for radius in (1.0, 0.25):
        outcome = problem.rounds().run(recipe, 1, radius)
        lengths = {one.length for one in outcome.proposals}
        assert lengths == {radius * length for length in (0.3, 0.6, 1.0)}


def test_a_round_with_batch_statistics_gains_too() -> None:
    problem = Problem(Normed, seed=3, members=4, images=600, spread=0.3, batchnorm="recalibrate")
    recipe = uniform(2, 4, range(4))
    outcome = problem.rounds(few=True).run(recipe, 1, 1.0)
    assert outcome.accepted and outcome.step is not None
    made = after(recipe, outcome.step.view_as(recipe), outcome.proposals[outcome.best].length)
    new = labelled(problem.model, 4000, 77)
    assert held_out_loss(problem, made, new) < held_out_loss(problem, recipe, new)


@pytest.mark.parametrize("metric", [Metric("top1"), Metric.of(top2)])
def test_any_metric_can_be_what_a_round_gains(metric: Metric) -> None:
    problem = Problem(seed=1, metric=metric, images=900)
    recipe = uniform(3, 4, range(4))
    outcome = problem.rounds(size=300).run(recipe, 1, 1.0)
    assert outcome.accepted and 0 < outcome.gain < 1
    for one in outcome.proposals:  # scores are means of whole images
        assert one.score * 200 == pytest.approx(round(one.score * 200), abs=1e-6)


def test_nothing_is_taken_where_nothing_is_to_be_had() -> None:
    """The mean of the members is the network that drew the labels: no step is an improvement."""
    accepted, worse = 0, 0
    for seed in range(20):
        problem = Problem(seed=seed, centred=True, images=500, spread=0.2, generations=4)
        search = problem.rounds(size=120)
        outcome = search.run(uniform(3, 4, range(4)), 1, 1.0)
        accepted += outcome.accepted
        worse += outcome.best >= 0 and outcome.proposals[outcome.best].score < 0
    # Each exceeds its standard error with a probability of 0.16 at most; more than 8 do with 0.2 %.
    assert accepted <= 8
    assert worse >= 10  # although the images that chose promised a gain


def test_folds_of_few_images_choose_the_ridge_and_the_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Problem(seed=1, images=200)
    search = problem.rounds(few=True)
    recipe = uniform(3, 4, range(4))
    outcome = search.run(recipe, 1, 0.5)
    assert [one.proposer for one in outcome.proposals] == ["convex", "de"] * 2
    (ridge, length), *more = {(one.ridge, one.length) for one in outcome.proposals}
    assert not more and ridge == outcome.held_out.ridge and length in (0.15, 0.3, 0.5)
    fits = module.held_out
    passes = problem.evaluator.forward_passes
    monkeypatch.setattr(
        module,
        "held_out",
        lambda *a: [replace(fit, gain=0.5 * fit.standard_error) for fit in fits(*a)],
    )
    outcome = search.run(recipe, 1, 1.0)
    assert not outcome.accepted and outcome.proposals == [] and outcome.step is None
    # No network beyond the present one, its logits, and three probes a block.
    assert problem.evaluator.forward_passes - passes == 200 * (1 + 1 + 3 * 3)


@pytest.mark.parametrize("later", [False, True])
def test_no_image_tests_a_network_that_was_fitted_to_it(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong labels of one fold change the networks that are fitted to it, not the one it tests.

    later: the folds' networks have taken steps of their own before, and take further ones, beside
    those that start from the present network.
    """
    monkeypatch.setattr(held_out, "RIDGES", (0.1,))
    monkeypatch.setattr(held_out, "LENGTHS", (1.0,))
    problem = Problem(seed=1, images=200, unit="member")
    search, recipe = problem.rounds(few=True), uniform(1, 4, [0])
    if later:
        steps = 0.1 * torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0))
        search = replace(search, apart=torch.stack([after(recipe, one, 1.0) for one in steps]))
    folds = fold_numbers(problem.images.labels, 5, problem.seed)
    monkeypatch.setattr(sampling, "fold_numbers", lambda *_: folds)
    found: list[list[Tensor]] = []
    scores = FewRounds._scores

    def noted(self: FewRounds, recipes: Tensor, images: ImageSet) -> Tensor:
        if len(images) < 200:
            found[-1].append(recipes)
        return scores(self, recipes, images)

    monkeypatch.setattr(FewRounds, "_scores", noted)
    labels = problem.images.labels.clone()
    labels[folds == 2] = 0
    for one in (problem.images, ImageSet(problem.images.images, labels, "images")):
        found.append([])
        outcome = replace(search, images=one).run(recipe, 1, 1.0)
        assert outcome.accepted and outcome.folds is not None
        own = recipe.expand(5, 1, 4) if search.apart is None else search.apart
        for start, made, kept in zip(own, found[-1][-5:], outcome.folds, strict=True):
            assert bool((torch.cat([start[None], made]) == kept).all(dim=(1, 2)).any())
    same = [torch.equal(a, b) for a, b in zip(*found, strict=True)]
    assert same == [False, False, True, False, False] * (1 + later)


@pytest.mark.parametrize("normed", [False, True])
def test_networks_of_folds_stay_where_a_step_does_them_no_good(normed: bool) -> None:
    """Slopes of the present network hold badly far from it, and steps along them may do harm.

    normed: probes have the statistics of groups of images, networks that are scored others.
    """
    stayed, went = 0, 0
    for seed in range(4):
        if normed:
            problem = Problem(Normed, seed=seed, images=300, generations=2, batchnorm="recalibrate")
        else:
            problem = Problem(seed=seed, images=200, generations=2)
        blocks = len(problem.blocks.blocks)
        numbers = fold_numbers(problem.images.labels, 5, problem.seed)
        recipe = uniform(blocks, 4, [0])
        steps = torch.randn(5, blocks, 4, generator=torch.Generator().manual_seed(seed))
        apart = torch.stack(
            [after(recipe, one - one.mean(dim=1, keepdim=True), 1.0) for one in steps]
        )
        search = replace(problem.rounds(few=True), score=math.inf, apart=apart)
        outcome = search.run(recipe, 1, 1.0)
        if outcome.folds is None:
            continue
        # Without a score of the present network that of the folds counts.
        assert outcome.score == pytest.approx(loss_of_folds(problem, outcome.folds), abs=1e-5)
        for k, (start, end) in enumerate(zip(apart, outcome.folds, strict=True)):
            known = problem.images.subset((numbers != k).nonzero().flatten())
            before, behind = (held_out_loss(problem, one, known) for one in (start, end))
            assert torch.equal(start, end) or behind < before
            stayed += torch.equal(start, end)
            went += behind < before
    assert stayed and went


@pytest.mark.parametrize("normed", [False, True])
def test_later_rounds_count_what_either_way_of_measuring_gains(
    normed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take as many passes as was said before."""
    monkeypatch.setattr(probing, "_LARGE", math.inf)  # second probes come to what is said
    if normed:
        problem = Problem(Normed, images=300, generations=4, batchnorm="recalibrate")
    else:
        problem = Problem(images=300)
    search, recipe = problem.rounds(few=True), uniform(len(problem.blocks.blocks), 4, [0])
    start = held_out_loss(problem, recipe, problem.images)
    first = replace(search, score=start).run(recipe, 1, 1.0)
    assert first.accepted and first.step is not None and first.folds is not None
    assert first.score == pytest.approx(start - first.gain, abs=1e-6)
    assert first.score == pytest.approx(loss_of_folds(problem, first.folds), abs=1e-5)
    length = first.proposals[first.best].length
    present = after(recipe, first.step.view_as(recipe), length)
    passes = problem.evaluator.forward_passes
    second = replace(search, score=first.score, apart=first.folds).run(present, 2, 1.0)
    assert second.accepted and second.folds is not None
    said = search.probing.passes(4, problem.images, search.classes)
    said += search.proving(problem.evaluator.policy.passes)
    assert problem.evaluator.forward_passes - passes == said
    alone = loss_of_folds(problem, second.folds)
    assert second.score <= alone + 1e-5
    by_its_step = second.score == pytest.approx(min(alone, first.score - second.gain), abs=1e-5)
    before = loss_of_folds(problem, first.folds)
    assert by_its_step or second.gain == pytest.approx(before - alone, abs=1e-5)


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_few_images_say_of_steps_is_what_new_ones_say_in_the_mean(rounds: int) -> None:
    """Networks that are made of four fifths gain a little less than the one made of all."""
    said, gained = [], []
    for seed in range(8):
        spread = 0.4 if rounds == 1 else 0.6  # so that a second step is taken
        problem = Problem(seed=seed, images=200, generations=4, spread=spread)
        new = labelled(problem.model, 4000, 77)
        recipe = uniform(3, 4, range(4))
        search = replace(problem.rounds(few=True), score=0.0)
        before, taken = held_out_loss(problem, recipe, new), 0
        for number in range(1, rounds + 1):
            outcome = search.run(recipe, number, 1.0)
            if outcome.step is None or not outcome.accepted:
                break
            length = outcome.proposals[outcome.best].length
            recipe = after(recipe, outcome.step.view_as(recipe), length)
            search = replace(search, score=outcome.score, apart=outcome.folds)
            taken += 1
        if taken == rounds:
            said.append(-search.score)
            gained.append(before - held_out_loss(problem, recipe, new))
    assert len(said) >= 5
    excess = torch.tensor(said) - torch.tensor(gained)
    error = float(excess.std()) / len(said) ** 0.5
    mean = float(excess.mean())
    assert mean < 3 * error + 0.1 * sum(gained) / len(gained)
    assert rounds > 1 or -mean < 3 * error + 0.1 * sum(gained) / len(gained)


def test_all_blocks_may_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a step is the same in every block, and gains what the linear model says."""
    units = FewRounds._units
    monkeypatch.setattr(FewRounds, "_units", lambda *a: units(*a)[1:])
    problem = Problem(seed=2, images=200, centred=True, spread=0.6)
    outcome = problem.rounds(few=True).run(uniform(3, 4, [0]), 1, 1.0)
    assert outcome.accepted and outcome.step is not None
    steps = outcome.step.view(3, 4)
    assert torch.allclose(steps, steps[:1].expand(3, -1), rtol=1e-5)
    for one in outcome.proposals[2:]:  # after the correction
        assert one.predicted < 0 and abs(one.score - one.predicted) < -0.3 * one.predicted


def refused(match: str, search: RoundSearch) -> None:
    with pytest.raises(DeevoError, match=match):
        search.check()
    assert search.evaluator.forward_passes == 0


def test_images_that_rounds_cannot_work_with_are_refused_before_any_pass() -> None:
    problem = Problem(images=200)
    search = problem.rounds(few=True)
    search.check()
    images = search.images
    refused(
        "made of 9 of 9 fitness images; its 5 folds", replace(search, images=images.slice(0, 9))
    )
    with pytest.warns(UserWarning, match="none of 1 of 4 classes, as class 2: steps may forget"):
        replace(search, images=images.subset((images.labels != 2).nonzero()[:, 0])).check()
    with pytest.warns(UserWarning, match="none of 996 of 1000 classes, as class 4: "):
        replace(search, classes=1000).check()
    refused("made of 5 of 200", replace(problem.rounds(size=5), images=images))
    inherits = Problem(Normed, images=200, batchnorm="inherit")
    refused('batchnorm="inherit" is for search="weights"', inherits.rounds(few=True))


def test_more_classes_than_labels_are_no_reason_to_warn() -> None:
    problem = Problem(images=500)
    search = problem.rounds(few=True)
    draw = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classes in (100, 1000, 5000):
            labels = torch.randint(0, classes, (500,), generator=draw)
            images = ImageSet(search.images.pixels(0, 500), labels, "drawn")
            replace(search, images=images, classes=classes).check()
        # One image of a class is no obstacle either, where all have some.
        labels = search.images.labels.clone()
        labels[labels == 1] = 2
        labels[7] = 1
        replace(search, images=ImageSet(search.images.pixels(0, 500), labels, "one")).check()
    # Two of each of half of the classes: that others have none is no chance, and no fold shows it.
    images = ImageSet(search.images.pixels(0, 500), torch.arange(500) // 2, "pairs")
    with pytest.warns(UserWarning, match="none of 250 of 500 classes, as class 250"):
        replace(search, images=images, classes=500).check()


def test_metrics_without_a_finite_score_are_refused_before_probes() -> None:
    def nan(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.where(labels == 2, torch.nan, 1.0)

    problem = Problem(metric=Metric.of(nan), images=200)
    with pytest.raises(DeevoError, match=r"scores by metric .*nan are NaN or infinite on \d+ of"):
        problem.rounds(few=True).run(uniform(3, 4, [0]), 1, 1.0)
    assert problem.evaluator.forward_passes == 200


@pytest.mark.parametrize("few", [False, True])
def test_networks_without_a_finite_score_are_never_taken(few: bool) -> None:
    """Steps lead to infinite scores, on every image or on some; the present network has none."""
    recipe = uniform(3, 4, range(4))

    def infinite(logits: Tensor, labels: Tensor) -> Tensor:
        losses = cross_entropy(logits, labels, reduction="none")
        return torch.where(losses > limit, torch.inf, losses)

    problem = Problem(seed=1, metric=Metric.of(infinite), images=300, generations=2)
    row = problem.blocks.blocks.compose(problem.population, recipe[None])
    losses = problem.evaluator.losses(row, problem.images).losses
    limit = float(losses.max()) * 1.02
    outcome = problem.rounds(size=100, few=few).run(recipe, 1, 1.0)
    if outcome.accepted:
        assert outcome.step is not None and 0 < outcome.gain < torch.inf
        made = after(recipe, outcome.step.view_as(recipe), outcome.proposals[outcome.best].length)
        row = problem.blocks.blocks.compose(problem.population, made[None])
        images = problem.images if few else problem.rounds(size=100).parts(1).test
        assert float(problem.evaluator.losses(row, images).losses.max()) <= limit

    def always(logits: Tensor, labels: Tensor) -> Tensor:
        known = (logits[:, None] - present).abs().amax(dim=2).amin(dim=1) < 1e-6
        return torch.where(known, 1.0, torch.inf)

    problem = Problem(seed=1, metric=Metric.of(always), images=300, generations=2)
    row = problem.blocks.blocks.compose(problem.population, recipe[None])[0]
    present = problem.evaluator.logits(row, problem.images)
    outcome = problem.rounds(size=100, few=few).run(recipe, 1, 1.0)
    assert not outcome.accepted
    scores = {one.score for one in outcome.proposals}
    assert scores <= {0.0, torch.inf}, scores


@pytest.mark.parametrize(("members", "unit"), [(2, "layer"), (4, "member"), (64, "tensor")])
def test_populations_of_any_size_and_blocks_of_any_kind(members: int, unit: str) -> None:
    problem = Problem(seed=1, members=members, unit=unit, centred=members == 2, images=200)
    blocks = len(problem.blocks.blocks)
    recipe = after(uniform(blocks, members, [0]), torch.zeros(blocks, members), 0.0)
    outcome = problem.rounds(few=True).run(recipe, 1, 1.0)
    assert outcome.accepted and outcome.step is not None
    assert outcome.step.shape == (blocks * members,)
    made = after(recipe, outcome.step.view_as(recipe), outcome.proposals[outcome.best].length)
    totals = made.double().sum(dim=1)
    assert bool(((totals - 1).abs() <= 1e-5 * made.abs().sum(dim=1).clamp_min(1)).all())
    new = labelled(problem.model, 4000, 77)
    assert held_out_loss(problem, made, new) < held_out_loss(problem, recipe, new)


def test_what_is_known_before_a_run_holds_differences_only_where_there_may_be_some() -> None:
    problem = Problem(images=600)
    for few, images, directions in ((True, 600, 3 * 4), (False, 200, DIRECTIONS)):
        rounds, validation = problem.rounds(few=few), problem.run(few=few).validation
        assert validation is not None
        known = examine_rounds(rounds, validation, problem.blocks, None, Budget(1))
        assert known.bytes == images * directions * 4 * 4  # four classes in float32


def module_engine(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return functional_call(Normed().eval(), state, (pixels,))


@pytest.mark.parametrize("engine", ["eager", "fused", module_engine])
@pytest.mark.parametrize("few", [True, False])
def test_a_round_takes_no_more_passes_than_was_said_before(
    few: bool, engine: str | EngineFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_LARGE", math.inf)  # second probes come to what is said
    problem = Problem(Normed, seed=3, spread=0.3, batchnorm="recalibrate", engine=engine)
    validation = Validation(problem.evaluator, problem.held_out, problem.metric)
    run = RecipeRun(problem.rounds(few=few), validation, Budget(1), unit="layer", progress=False)
    known = examine_rounds(run.rounds, validation, problem.blocks, None, run.budget)
    run.run()
    (first,) = run.history
    assert 0.25 * known.passes < first["round_passes"] <= known.passes
    assert known.seconds_beside > 0.0  # of virtual evolutions
