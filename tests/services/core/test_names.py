"""Names with characters that steer a terminal, a log or Markdown: refused at the door, escaped where they are shown."""

import json
import logging
import subprocess
import sys
import unicodedata
from typing import Any

import pytest
from pydantic import TypeAdapter

from dearkd.data.shard_info import read_class_names
from dearkd.errors import InvalidInput
from dearkd.log_lines import PrintableFormatter
from dearkd.names import check_name, markdown, markdown_code, printable, printable_json
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec

STEERING = [
    "\x00", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\x9b", "\u061c", "\u200b", "\u200e", "\u200f", "\u202a",
    "\u202e", "\u2028", "\u2029", "\u2060", "\u2066", "\u2069", "\ufeff", "\u00ad", "\ud800", "\udfff", "\U000e0041",
]  # fmt: skip
HARMLESS = [
    "digits", "Größe 3", "сеть", "网络", "תוכנה", "क्\u200dष", "می\u200cخواهم", "👩\u200d👩\u200d👧", "❤\ufe0f", "a|b",
    "[red]x", "`x`", "a\u00a0b", "e\u0301",
]  # fmt: skip

TEACHER: dict[str, Any] = {
    "name": "t", "architecture": "resnet10t", "num_classes": 2, "in_chans": 1, "image_size": 32, "mean": [0.5],
    "std": [0.5],
}  # fmt: skip
FACTS = DatasetFacts(num_samples=2000, num_classes=2, image_size=32, in_chans=1, synthetic=True, mirrored=False)


def pointers(refused: pytest.ExceptionInfo[InvalidInput]) -> list[str]:
    return [error.pointer for error in refused.value.errors]


@pytest.mark.parametrize("character", STEERING, ids=ascii)
def test_every_spec_refuses_them_in_every_name(character: str) -> None:
    name = f"a{character}b"
    teacher = TeacherSpec.check(TEACHER)
    with pytest.raises(InvalidInput) as refused:
        TeacherSpec.check(TEACHER | {"name": name})
    assert pointers(refused) == ["/name"]
    if not 0xD800 <= ord(character) <= 0xDFFF:  # pydantic refuses those before
        assert f"U+{ord(character):04X} at position 2" in refused.value.message
    assert refused.value.message.isprintable()
    with pytest.raises(InvalidInput) as refused:
        TeacherSpec.check(TEACHER | {"class_names": ["cat", name]})
    assert pointers(refused) == ["/class_names/1"]
    with pytest.raises(InvalidInput) as refused:
        SynthesisSpec.resolve({"teacher": "t", "name": name}, teacher)
    assert pointers(refused) == ["/name"]
    with pytest.raises(InvalidInput) as refused:
        TrainingSpec.resolve({"dataset": "d", "name": name}, FACTS, teacher)
    assert pointers(refused) == ["/name"]
    with pytest.raises(InvalidInput, match=r"class_names\.json"):
        read_class_names(json.dumps(["cat", name]).encode(), "x/class_names.json")


@pytest.mark.parametrize("name", HARMLESS)
def test_names_of_all_scripts_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == name
    assert printable(name) == name
    spec = TeacherSpec.check(TEACHER | {"name": name, "class_names": [name, "x"]})
    assert (spec.name, spec.class_names) == (name, [name, "x"])
    assert read_class_names(json.dumps([name], ensure_ascii=False).encode(), "x") == [
        unicodedata.normalize("NFC", name)
    ]


def test_what_was_stored_before_the_rule_is_still_read() -> None:
    assert TeacherSpec.stored(TEACHER | {"name": "a\nb"}).name == "a\nb"
    with pytest.raises(ValueError, match="num_classes"):
        TeacherSpec.stored(TEACHER | {"num_classes": 1})


@pytest.mark.parametrize("character", STEERING, ids=ascii)
def test_what_is_shown_of_them_steers_nothing(character: str) -> None:
    text = f"a{character}b"
    for shown in (printable(text), markdown(text), markdown_code(text)):
        assert shown.isprintable()
        shown.encode()
    shown = printable_json({"name": text, text: [text]})
    assert "".join(shown.split("\n")).isprintable()
    assert json.loads(shown) == {"name": text, text: [text]}


def test_markdown_takes_nothing_of_a_name_for_markup() -> None:
    hostile = (
        "x](javascript:alert(1)) ![a](http://evil.example/p.png) <img src=x onerror=y> | a\n# b `c` **d** https://e"
    )
    shown = markdown(hostile)
    assert "\n" not in shown
    for mark in "[]<>|#`*!":
        assert shown.count(mark) == shown.count(f"\\{mark}"), mark
    for text in ("a`b", "``", "`a", "a|b", "a\nb", ""):
        code = markdown_code(text)
        fence = code[: len(code) - len(code.lstrip("`"))]
        inner = code[len(fence) : -len(fence)]
        assert fence
        assert code.endswith(fence)
        assert fence not in inner
        assert "\n" not in code


def test_a_log_record_is_a_line_whatever_it_says() -> None:
    record = logging.makeLogRecord({"msg": "GET %s", "args": ("/x\n2026 ERROR forged\x1b[2J",), "levelname": "INFO"})
    assert PrintableFormatter("%(levelname)s %(message)s").format(record) == r"INFO GET /x\n2026 ERROR forged\x1b[2J"
    try:
        raise ValueError("\x1b[31mred")
    except ValueError:
        traceback = PrintableFormatter().formatException(sys.exc_info())
    assert traceback.count("\n") >= 2
    assert "\x1b" not in traceback


def test_tables_and_errors_of_the_command_line_show_them_escaped() -> None:
    script = (
        "from dearkd.answers import Check\n"
        "from dearkd.cli.output import note, print_error, print_item, print_list\n"
        "from dearkd.errors import DearKDError\n"
        "name = 'a\\x1b[2Jb\\u202e\\n[/] [red]x \\ud800'\n"
        "print_list(iter([{'name': name}]), {'NAME': 'name'}, limit=5, as_json=False)\n"
        "print_item(Check.model_construct(id=name), as_json=False)\n"
        "note(name)\n"
        "print_error(DearKDError(name), as_json=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=True)
    for shown in (done.stdout, done.stderr):
        assert all(line.isprintable() for line in shown.splitlines())
        assert "[/] [red]x" in shown
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown


def test_the_type_is_one() -> None:
    from dearkd.specs import Name

    with pytest.raises(ValueError, match=r"U\+202E at position 1"):
        TypeAdapter(Name).validate_python("\u202e")
