"""Holds what a model's requirements mean: read from each of MLflow's files, met by the node or not."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import EnvironmentFailed
from interlock.registry.requirements import Requirements, check_python, digest_of, read, to_install, unmet

CONDA = "dependencies:\n- python=3.11.7\n- pip<=23\n- pip:\n  - mlflow==3.1.0\n  - a==1\n"
NAMES = st.text("abcdefgh", min_size=3, max_size=6)


def test_requirements_txt_comes_first_with_what_it_includes(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("b==2  # why\n\n-r more.txt\na>=1 \\\n  ,<2\n-c bounds.txt\n")
    (tmp_path / "more.txt").write_text("c\n")
    (tmp_path / "bounds.txt").write_text("numpy<3\n")
    (tmp_path / "python_env.yaml").write_text("python: 3.11.2\ndependencies:\n- d\n")
    (tmp_path / "conda.yaml").write_text(CONDA)
    found = read(tmp_path)
    assert found == Requirements(("a>=1    ,<2", "b==2", "c"), ("numpy<3",), "3.11.2")
    assert unmet(found, {"a": "1.5", "b": "2", "c": "0.1", "numpy": "2.1"}.get) is None


def test_without_it_the_other_files_say(tmp_path: Path) -> None:
    (tmp_path / "conda.yaml").write_text(CONDA)
    assert read(tmp_path) == Requirements(("a==1", "mlflow==3.1.0"), (), "3.11.7")
    (tmp_path / "python_env.yaml").write_text("python: 3.11.2\ndependencies:\n- d\n")
    assert read(tmp_path) == Requirements(("d",), (), "3.11.2")
    assert read(tmp_path / "none") == Requirements()


def test_files_that_cannot_be_read_or_lie_outside_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "requirements.txt").write_text("-r ../secret.txt\n")
    with pytest.raises(EnvironmentFailed, match=r"\.\./secret\.txt, outside"):
        read(folder)
    (folder / "requirements.txt").write_text("-r requirements.txt\n")
    with pytest.raises(EnvironmentFailed, match="include"):
        read(folder)
    (folder / "requirements.txt").write_text("-r missing.txt\n")
    with pytest.raises(EnvironmentFailed, match=r"missing\.txt"):
        read(folder)
    (folder / "conda.yaml").write_text("a: [")
    with pytest.raises(EnvironmentFailed, match=r"conda\.yaml"):
        read(folder)


@pytest.mark.parametrize("wanted", ["3.11", "3.11.0", "3.11.14", None])
def test_another_patch_of_python_will_do(wanted: str | None) -> None:
    check_python(Requirements(python=wanted), (3, 11))


@pytest.mark.parametrize("wanted", ["3.1", "3.110", "3.12.1", "2.7"])
def test_another_python_will_not(wanted: str) -> None:
    with pytest.raises(EnvironmentFailed, match=rf"made with Python {wanted}, and this node has 3\.11"):
        check_python(Requirements(python=wanted), (3, 11))


def test_what_pip_gets() -> None:
    assert to_install(Requirements(("mlflow>=2,<3", "numpy==1.26.4", "msgspec==0.21")), "0.20") == (
        "mlflow-skinny<3,>=2",
        "numpy==1.26.4",
        "msgspec==0.21",
        "msgspec>=0.20",
        "pandas<3",
    )
    assert to_install(Requirements(("mlflow[gateway]==3.1", "pandas==2.2.3")), "0.20")[0] == (
        "mlflow[gateway]==3.1"
    )
    assert "mlflow-skinny" in to_install(Requirements(("a",)), "0.20")


@pytest.mark.parametrize(
    "line", ["a==2", "b", "a[extra]==1", "./a.whl", "a @ https://example.org/a.whl", "--pre", "-e ."]
)
def test_what_the_node_does_not_have(line: str) -> None:
    assert unmet(Requirements((line,)), {"a": "1"}.get) == line


def test_what_the_node_has() -> None:
    lines = ("mlflow==3.1.0", "a==1 --hash=sha256:00", 'b==3; python_version < "3"')
    installed = {"mlflow-skinny": "3.1.0", "a": "1"}
    assert unmet(Requirements(lines, ("c<2",)), installed.get) is None
    assert unmet(Requirements(lines, ("c<2",)), {**installed, "c": "2.1"}.get) == "c<2"


@given(st.dictionaries(NAMES, st.integers(1, 9), max_size=5), st.randoms())
def test_an_environment_met_exactly_is_the_nodes(pins: dict[str, int], random: object) -> None:
    lines = tuple(f"{name}=={number}" for name, number in pins.items())
    installed = {name: str(number) for name, number in pins.items()}
    assert unmet(Requirements(lines), installed.get) is None
    for name in pins:
        other = {**installed, name: str(pins[name] + 1)}
        assert unmet(Requirements(lines), other.get) == f"{name}=={pins[name]}"
        del other[name]
        assert unmet(Requirements(lines), other.get) == f"{name}=={pins[name]}"


@given(st.lists(NAMES, unique=True, min_size=1, max_size=5), st.data())
def test_order_and_comments_do_not_name_another_environment(names: list[str], data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "requirements.txt").write_text("\n".join(names))
        first = digest_of(read(folder), folder)
        shuffled = data.draw(st.permutations(names))
        (folder / "requirements.txt").write_text("# words\n" + " # more\n".join(shuffled) + "\n")
        assert digest_of(read(folder), folder) == first
        (folder / "requirements.txt").write_text("\n".join([*names, "other"]))
        assert digest_of(read(folder), folder) != first


def test_a_file_that_a_line_names_counts_by_its_bytes(tmp_path: Path) -> None:
    wanted = Requirements(("wheels/a-1-py3-none-any.whl",))
    (tmp_path / "wheels").mkdir()
    (tmp_path / wanted.lines[0]).write_bytes(b"one")
    first = digest_of(wanted, tmp_path)
    (tmp_path / wanted.lines[0]).write_bytes(b"two")
    assert digest_of(wanted, tmp_path) != first
    bounded = msgspec.structs.replace(wanted, constraints=("b<2",))
    assert digest_of(bounded, tmp_path) != digest_of(wanted, tmp_path)
