"""The timed cascade of `benchmarks/cascade.py` as a table."""

from __future__ import annotations

from result_format import NOT_YET, stored, table


def cascade_block() -> str:
    """One row a prefilter: rows read, time beside the full pass, and the share lost, as measured and in truth."""
    found = stored("cascade-demo-seed0")
    if found is None:
        return NOT_YET
    rows = []
    for one in found["runs"]:
        lost, read = one["measured_loss"], f"{one['kept']:,}"
        rows.append(
            [
                f"`{one['prefilter']}`",
                f"{read} + {one['sampled']:,}" if one["sampled"] else read,
                f"{one['wall_seconds']:.0f}",
                f"{one['share_of_wall']:.2f}",
                f"{one['processor_seconds']:.0f}",
                f"{one['share_of_processor']:.2f}",
                f"{lost['share']:.0%} [{lost['low']:.0%}, {lost['high']:.0%}]" if lost else "",
                "" if one["true_loss"] is None else f"{one['true_loss']:.0%}",
            ]
        )
    whole = found["runs"][0]
    options = found["made"]["options"]
    head = ["prefilter", "rows read by GIST", "seconds", "of none", "of the processor", "of none"]
    text = table([*head, "lost, measured [95 %]", "lost in truth"], rows)
    usable = f"{options['rows']:,} random rows of `small` ({whole['usable_rows']:,} usable)"
    read = f"{usable}, {options['max_queries']} queries"
    return f"{read}, the {whole['selected']} best rows, {options['threads']} thread:\n\n{text}"
