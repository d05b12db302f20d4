"""Whether a coordinate check that lies beside a sweep is about that sweep."""

from __future__ import annotations

from mutransfer.report.words import Json


def difference(check: Json, transfer: Json) -> str:
    """In what the check is of something else than the sweep, in words; empty where nothing contradicts.

    Only what both say is compared: model, base, parameterization and optimizer.
    """
    known = said(check)
    name = known.get("parameterization.name")
    if name is not None and name not in transfer["parameterizations"]:
        return f"it is of {name}, which was not swept"
    swept = transfer.get("settings", {}).get(name, {})
    other = [key for key in known if key in swept and swept[key] != known[key]]
    if "model.name" in other:  # the fields of another model differ of themselves
        other = ["model.name", *(key for key in other if not key.startswith("model."))]
    return ", ".join(f"{key} is {known[key]} in the check and {swept[key]} in the sweep" for key in other)


def said(check: Json) -> dict[str, object]:
    """What a check was made of: the whole config where the command line made it, else what Python was told."""
    told = {"parameterization.name": check.get("parameterization"), "optimizer.name": check.get("optimizer")}
    told |= {"base": check.get("base")} if isinstance(check.get("base"), int) else {}
    return {key: value for key, value in (told | dict(check.get("settings") or {})).items() if value is not None}
