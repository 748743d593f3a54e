"""Gradient norms of the semigroup and alignment losses beside DMD's, for every exit step of every step list.

Each loss is differentiated alone, on the same rollout, with its weight in the sum that is trained on. The models are
those of the run's newest checkpoint, else those that it starts from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from torch import Tensor

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe, RecipeError
from train.data.batch import Batch
from train.losses.semigroup import draw_triple
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import alignment_term, dmd_term, semigroup_term
from train.rollout.random_draws import UpdateDraws, generator_for, seed_for

TERMS = ("dmd", "semigroup", "align")


@dataclass(frozen=True)
class Row:
    """Norms of one exit step, a value for every batch of every seed.

    steps: of its list. norms: by loss; ratios to DMD's are of the same batch. A loss that the exit has not is left out.
    """

    steps: int
    exit_index: int
    norms: Mapping[str, Sequence[float]]

    def ratio(self, term: str) -> tuple[float, float]:
        """Mean of the norm over DMD's, and the standard deviation between batches (0 for a single one)."""
        pairs = zip(self.norms[term], self.norms["dmd"], strict=True)
        found = [own / dmd if dmd else math.nan for own, dmd in pairs]
        return fmean(found), stdev(found) if len(found) > 1 else 0.0


def measure_gradients(recipe: Recipe, seeds: Sequence[int], batches: int) -> tuple[list[Row], int]:
    """A row for every exit step of the recipe's step lists, and the update after which its models stand.

    seeds: of prompts and noise; batches: micro-batches of each. Raises RecipeError for a stage without these losses.
    """
    if recipe.stage != "distill" or recipe.streams or recipe.windows:
        tuning = f"rollout.long_tuning={recipe.rollout.long_tuning}"
        found = f"the stage {recipe.stage}" if recipe.stage != "distill" else tuning
        raise RecipeError("recipe", f"found {found}, expected distillation of whole clips")
    aligned = replace(
        recipe,
        loss=replace(recipe.loss, align_start=0),  # whether or not the run has come to it
        models=replace(recipe.models, keep="input"),  # what else is saved serves one backward, and here are several
        run=replace(recipe.run, tracker="none"),
    )
    trainer = SCDMDTrainer(aligned)
    done = trainer.resume()
    norms: dict[tuple[int, int], dict[str, list[float]]] = {}
    for seed in seeds:
        seeded = replace(aligned, run=replace(aligned.run, seed=seed))
        trainer.recipe, trainer.prompts = seeded, trainer.prompts.under(seeded)
        for number in range(batches):
            batch = trainer.prompts.batch(number, range(recipe.optimisation.micro_batch), "generator")
            for draws in all_exits(seeded, number):
                row = norms.setdefault((draws.schedule.nfe, draws.exit_index), {})
                for term, norm in trainer.student.model(term_norms, trainer, batch, draws, number).items():
                    row.setdefault(term, []).append(norm)
    return [Row(*key, found) for key, found in norms.items()], done


def all_exits(recipe: Recipe, number: int) -> Iterator[UpdateDraws]:
    """The draws of an update, with every step list and every exit step in place of those that are drawn."""
    for nfe in sorted(recipe.rollout.share, reverse=True):
        schedule = recipe.schedule(nfe)
        for exit_index in range(nfe):
            triple = None
            if recipe.loss.semigroup and nfe == 8:
                key = (recipe.run.seed, "gradients", number, exit_index)
                triple = draw_triple(schedule, exit_index, generator_for(*key))
            first_exit = seed_for(recipe.run.seed, "gradients", number, exit_index, "first exit") % schedule.first.nfe
            yield UpdateDraws(schedule, exit_index, triple, recipe.loss.guidance, first_exit)


def term_norms(
    student: SaltTransformer3DModel, trainer: SCDMDTrainer, batch: Batch, draws: UpdateDraws, number: int
) -> dict[str, float]:
    """The gradient norms of the losses of one rollout, each with its weight."""
    recipe, teacher = trainer.recipe, trainer.teacher
    result = trainer.rollout(student, batch, draws, number, "generator")
    terms = {"dmd": dmd_term(trainer.critic_score, teacher, result.x0, batch, recipe, draws, number, result.learned)}
    semigroup, found = semigroup_term(result, recipe, draws)
    terms |= {"semigroup": semigroup} if found else {}
    alignment, found = alignment_term(student, teacher, result, batch, recipe, draws, number)
    terms |= {"align": alignment} if found else {}
    parameters = [p for p in student.parameters() if p.requires_grad]
    return {name: gradient_norm(term, parameters) for name, term in terms.items()}


def gradient_norm(term: Tensor, parameters: list[torch.nn.Parameter]) -> float:
    """The norm of d term / d parameters; 0 where the term does not depend on them. The graph stays for other terms."""
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
