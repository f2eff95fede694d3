# SPDX-License-Identifier: Apache-2.0
"""
README.md's map of the contract's rules to their tests: complete, true to the contract's words, and every test exists.
"""
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECTIONS = (4, 5, 6, 7, 8, 10)  # those that bind an agent
FOLDERS = {"": "integration", "unit/": "unit", "spark/": "spark", "controlplane/": "controlplane"}


def section(text, number):
    return re.search(rf"^## {number}\. .*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[0]


def flat(text):
    return " ".join(text.split())


CONTRACT = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
README = (HERE / "README.md").read_text(encoding="utf-8")


def rules(number):
    """The rows of a section's table: (words of the contract, names of tests); and what stands in quotes beside it."""
    text = section(README, number)
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| rule")]
    found = [(row[0].strip(), row[1].replace("|", "").replace(",", " ").split()) for row in rows]
    return found + [(words, []) for words in re.findall(r'"(.+?)"[: ]', flat(re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)))]


def pieces(number):
    """The paragraphs, list items and table rows of a section, without its heading and its tables' heads."""
    found, lines = [], section(CONTRACT, number).splitlines()[1:]
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if line.startswith("|"):
            if not line.startswith("|---") and not following.startswith("|---"):
                found.append(line)
        elif line.startswith("- ") or (line.strip() and (index == 0 or not lines[index - 1].strip() or
                                                         lines[index - 1].startswith("|"))):
            found.append(line)
        elif line.strip():
            found[-1] += " " + line
    return [flat(piece) for piece in found]


def test_every_rule_stands_in_the_contract():
    for number in SECTIONS:
        text = flat(section(CONTRACT, number))
        missing = [words for words, _ in rules(number) if flat(words) not in text]
        assert not missing, f"section {number}: the contract does not say {missing}"


def test_every_piece_of_the_contract_has_a_rule():
    for number in SECTIONS:
        words = [flat(words) for words, _ in rules(number)]
        bare = [piece for piece in pieces(number) if not any(one in piece for one in words)]
        assert not bare, f"section {number}: README.md names no test for {bare}"


def test_every_test_of_the_map_exists():
    defined = {}
    for folder in FOLDERS.values():
        text = "\n".join(path.read_text(encoding="utf-8") for pattern in ("test_*.py", "test_*.c")
                         for path in sorted((ROOT / "tests" / folder).glob(pattern)))
        defined[folder] = set(re.findall(r"^(?:def|static void) (test_\w+)\(", text, re.MULTILINE))
    for number in SECTIONS:
        assert len(rules(number)) > 5, "the table can't be read"
        for words, tests in rules(number):
            for name in tests:
                folder = FOLDERS[name[:name.find("/") + 1]]
                assert name.rpartition("/")[2] in defined[folder], f"{words}: there is no test {name} in tests/{folder}"


def test_every_test_of_the_rules_is_in_the_map():
    text = (HERE / "test_contract.py").read_text(encoding="utf-8")
    missing = [name for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE) if name not in README]
    assert not missing, f"README.md does not name {missing}"
