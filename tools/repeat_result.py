"""Two runs of `benchmarks/quality.py --small`, by two versions of the code: are they the same?"""

from __future__ import annotations

from result_format import NOT_YET, stored


def repeat_block() -> str:
    """How far the losses of the run in the main table are from those of the earlier one, and what they cost then."""
    now, before = stored("small-seed0"), stored("small-seed0-earlier")
    if now is None or before is None:
        return NOT_YET
    arms, known = ({one["arm"]: one for one in found["findings"]} for found in (now, before))
    if arms.keys() != known.keys():
        raise ValueError("the two runs have other arms")
    apart = max(abs(arms[name]["mean"] - known[name]["mean"]) for name in arms)
    picked = "the same selections" if now["overlap"] == before["overlap"] else "other selections"
    ratios = [one["GIST"]["cost"]["selection_to_tuning"] for one in (known, arms)]
    return (
        f"The same command by an earlier version of the code: {len(arms)} arms, {picked}, mean losses at most "
        f"{apart:.0e} apart. STR of GIST then {ratios[0]:.2g}, now {ratios[1]:.2g}.\n"
    )
