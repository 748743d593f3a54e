"""Checks of a recipe's solver, its first frames, and what its scores see."""

from __future__ import annotations

from train.config.recipe import Recipe, RecipeError


def check_steps(recipe: Recipe) -> None:
    """Raise RecipeError for what is not defined on UniPC's steps, or on blocks that a recipe does not have."""
    r, loss = recipe.rollout, recipe.loss
    in_whole = r.kind == "bidirectional"
    if r.stepping == "unipc":
        if in_whole or recipe.stage in ("ode", "cd"):
            where = "bidirectional students" if in_whole else f"the stage {recipe.stage}"
            raise RecipeError("rollout.stepping", f"is not supported by {where}", r.stepping)
        for name, value, unset in (("semigroup", loss.semigroup, 0.0), ("align", loss.align, "none")):
            if value != unset:
                expected = f"expected {unset} (it is defined on Wan 2.1's steps), or rollout.stepping=sde"
                raise RecipeError(f"loss.{name}", f"found {value} with rollout.stepping=unipc, {expected}")
    if loss.score == "causal_noisy" and loss.align != "none":
        problem = f"found {loss.align} with loss.score=causal_noisy, expected none, or causal scores"
        raise RecipeError("loss.align", problem)
    if loss.score_step_for == "block" and loss.score == "bidirectional":
        raise RecipeError("loss.score_step_for", "found block, expected clip, or loss.score=causal or causal_noisy")
    if loss.scale_for == "block" and in_whole:
        raise RecipeError("loss.scale_for", "found block, expected clip: bidirectional students have no blocks")


def check_first_frame(recipe: Recipe) -> None:
    """Raise RecipeError where a first frame is given in two ways, or to what does not take it."""
    r = recipe.rollout
    if r.gives_first_frame and r.independent_first_frame:
        problem = "found true with rollout.independent_first_frame, expected one: the first frame is part of a block"
        raise RecipeError("rollout.gives_first_frame", problem)
    if r.gives_first_frame and r.kind == "bidirectional":
        raise RecipeError("rollout.gives_first_frame", "is not supported by bidirectional students", True)
    if recipe.start.first_frame == "given" and not (recipe.stage == "tf" and r.gives_first_frame):
        problem = "found given, expected the stage tf and rollout.gives_first_frame=true, or learned"
        raise RecipeError("start.first_frame", problem)
