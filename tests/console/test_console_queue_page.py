"""What the queue sends to a browser: what has changed, a piece at a time."""

from typing import Any

from console.pages.queue_rows import AT_ONCE, Shown


def rows(*numbers: int, score: str = "0.5") -> list[dict[str, Any]]:
    return [{"id": str(number), "score": score} for number in numbers]


def test_only_what_has_changed_is_sent() -> None:
    shown = Shown()
    assert shown.change_to(rows(1, 2, 3)) == {"add": rows(1, 2, 3)}
    assert shown.change_to(rows(1, 2, 3)) == {}
    assert shown.change_to([*rows(4), *rows(2), *rows(3, score="0.9")]) == {
        "add": rows(4), "update": rows(3, score="0.9"), "remove": [{"id": "1"}]
    }  # fmt: skip


def test_a_burst_is_sent_in_pieces_the_first_rows_first_until_all_of_it_is_there() -> None:
    shown, grid = Shown(), dict[str, dict[str, Any]]()
    for wanted in (rows(*range(200)), rows(*range(100, 300))):
        for turn in range(10):
            change = shown.change_to(wanted)
            assert all(len(each) <= AT_ONCE for each in change.values())
            if turn == 0:
                assert change["add"][0]["id"] == ("0" if wanted[0]["id"] == "0" else "200")
            grid.update({row["id"]: row for row in (*change.get("add", []), *change.get("update", []))})
            for row in change.get("remove", []):
                del grid[row["id"]]
            if shown.complete:
                break
        assert sorted(grid) == sorted(row["id"] for row in wanted)
