"""What is to be tried in shadow: the rules in service, and beside them those of a copy that are new or changed.

The rules in service stay as they are, so that no verdict changes. A changed rule is tried under a name of its own.
"""

from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from dataflow.errors import UserError

ENDING: Final = "_shadow"
"""Of the name under which a changed rule is tried."""
_LONGEST: Final = 64  # a rule's id


def in_shadow(service: str, copy: str) -> tuple[str, list[str]]:
    """The rules file that tries a copy, comments kept, and what of the copy is not tried before it is promoted.

    Both texts are right by themselves; the result still is to be checked.

    Raises:
        UserError: there is nothing to try, or a list that rules in service read would change.
    """
    try:
        tried, wanted = tomlkit.parse(service), tomlkit.parse(copy)
    except TOMLKitError as error:
        msg = f"not a TOML file: {error}"
        raise UserError(msg) from None
    untried = []
    _add_lists(tried, wanted)
    for kind in ("deny", "allow"):
        if _plain(tried.get(kind, [])) != _plain(wanted.get(kind, [])):
            untried.append(f"[[{kind}]] differs, and has no shadow: it counts once the copy is promoted")
    rules: Any = tried.setdefault("rule", tomlkit.aot())
    served = {str(rule["id"]): number for number, rule in enumerate(rules)}
    ids = set(served) | {str(rule["id"]) for rule in wanted.get("rule", [])}
    candidates = []
    for rule in wanted.get("rule", []):
        name = str(rule["id"])
        before = rules[served[name]] if name in served else None
        if before is not None and _said(before) == _said(rule):
            continue
        tried_already = before is not None and before.get("mode") != "off" and _same_but_mode(before, rule)
        if rule.get("mode", "active") == "off" or tried_already:
            untried.append(f"rule {name!r} changes its mode to {rule.get('mode', 'active')} once the copy is promoted")
            continue
        candidate = tomlkit.table()
        for key, value in rule.items():
            candidate[key] = value
        candidate["mode"] = "shadow"
        if before is not None and before.get("mode", "active") == "active":
            candidate["id"] = _free(name, ids)
        elif before is not None:  # in shadow or off: its own place will do
            rules.pop(served[name])
            served = {str(each["id"]): number for number, each in enumerate(rules)}
        candidates.append(candidate)
    gone = sorted(set(served) - {str(rule["id"]) for rule in wanted.get("rule", [])})
    untried += [f"rule {name!r} stays until the copy is promoted" for name in gone]
    if not candidates:
        msg = "there is nothing to try: the copy has no new or changed condition, reason, weight, action or cooldown"
        raise UserError(msg)
    for candidate in candidates:
        if rules:
            rules[-1].add(tomlkit.nl())
        rules.append(candidate)
    return tomlkit.dumps(tried), untried


def _add_lists(tried: Any, wanted: Any) -> None:
    """Adds the lists that only the copy has."""
    for name, source in wanted.get("lists", {}).items():
        if "lists" not in tried:
            tried["lists"] = tomlkit.table()
        if name not in tried["lists"]:
            tried["lists"][name] = source
        elif _plain(tried["lists"][name]) != _plain(source):
            msg = (
                f"list {name!r} differs from the one in service, which its rules go on reading: give the new one a "
                "name of its own, or promote that change by itself"
            )
            raise UserError(msg)


def _said(rule: Any) -> dict[str, Any]:
    """What a rule says, with what it leaves out."""
    defaults = {"weight": 0.5, "mode": "active", "cooldown": "0s", "action": "review"}
    return defaults | dict(_plain(rule))


def _same_but_mode(before: Any, after: Any) -> bool:
    return {**_said(before), "mode": ""} == {**_said(after), "mode": ""}


def _free(name: str, ids: set[str]) -> str:
    """A name for a changed rule that no other has."""
    found, number = name[: _LONGEST - len(ENDING)] + ENDING, 2
    while found in ids:
        ending = f"{ENDING}{number}"
        found, number = name[: _LONGEST - len(ending)] + ending, number + 1
    ids.add(found)
    return found


def _plain(value: Any) -> Any:
    """What a piece of the file says, without its comments and its layout."""
    return value.unwrap() if hasattr(value, "unwrap") else value
