# SPDX-License-Identifier: MIT
"""The rules of the house: who may include whom, what an import loads, stubs that fit, and the form of files."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import miaobi
from miaobi import _core

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "cpp" / "src"
HEADERS = ROOT / "cpp" / "include"
CPP = (".h", ".cpp")


def files(*folders: str, suffixes: tuple[str, ...]) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]
    assert found
    return found


# --- layers of the engine

# A file includes its own level or a lower one. io and text stand on runtime alone.
LEVELS = ("runtime", "kernels", "gemm", "ops", "nn", "model")
STAND_ON_RUNTIME = ("io", "text")
PUBLIC_HEADERS = {
    "runtime": "check cpu mat memory philox rng threads",
    "kernels": "dropout_mask gemm_types",
    "gemm": "gemm",
    "ops": "attention cross_entropy dropout elementwise embedding layer_norm linear",
    "nn": "kv_cache layers parameters",
    "model": "adamw gpt sampler",
    "io": "mapped_file safetensors",
    "text": "encoder segmenter",
}
LEVEL_OF_HEADER = {f"miaobi/{name}.h": level for level, names in PUBLIC_HEADERS.items() for name in names.split()}
# What the files compiled for one instruction set may use: no inline function of the standard library may come from
# there, for the linker could take it for every machine.
PLAIN_HEADERS = {f"miaobi/{name}.h" for name in ("dropout_mask", "gemm_types", "mat", "philox")}
INTRINSICS = {"cstddef", "cstdint", "immintrin.h", "arm_neon.h"}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', path.read_text(encoding="utf-8"), re.MULTILINE)


def level_of(include: str, of: Path) -> str | None:
    """The level of an included file of the engine; None for one of the system."""
    if include.startswith("miaobi/"):
        assert include in LEVEL_OF_HEADER, f"{of.name} includes {include}: name its level in {Path(__file__).name}"
        return LEVEL_OF_HEADER[include]
    if (of.parent / include).is_file():
        return level_of_file(of.parent / include)
    return include.split("/")[0] if (SOURCES / include).is_file() else None


def level_of_file(path: Path) -> str:
    if path.is_relative_to(HEADERS):
        return LEVEL_OF_HEADER[path.relative_to(HEADERS).as_posix()]
    return path.relative_to(SOURCES).parts[0]


def may_include(level: str, other: str) -> bool:
    if level == "reference":  # the oracle: the shapes and names of the engine, none of its code
        return other in ("reference", "runtime", "kernels", "ops")
    if level in STAND_ON_RUNTIME:
        return other in (level, "runtime")
    return other in LEVELS and LEVELS.index(other) <= LEVELS.index(level)


def test_levels() -> None:
    public = {path.relative_to(HEADERS).as_posix() for path in files("cpp/include", suffixes=CPP)}
    assert public <= LEVEL_OF_HEADER.keys(), "name the level of a new header in PUBLIC_HEADERS"
    for path in files("cpp/src", "cpp/include", suffixes=CPP):
        level = level_of_file(path)
        assert level in (*LEVELS, *STAND_ON_RUNTIME, "reference"), path
        for include in includes(path):
            other = level_of(include, path)
            assert other is None or may_include(level, other), f"{path} ({level}) includes {include} ({other})"


def test_only_bindings_know_python() -> None:
    for path in files("cpp", suffixes=(*CPP, ".txt", ".cmake")):
        text = path.read_text(encoding="utf-8")
        assert "pybind11" not in text, path
        assert "Python.h" not in text, path


def test_kernels_include_plain_data_only() -> None:
    kernels = SOURCES / "kernels"
    starts = [*kernels.glob("*/*.cpp"), *kernels.glob("*.inc.h"), *kernels.glob("simd_*.h")]
    assert len(starts) >= 9
    seen: set[Path] = set()
    while starts:
        path = starts.pop()
        if path in seen:
            continue
        seen.add(path)
        for include in includes(path):
            if (SOURCES / include).is_file():
                assert include.startswith("kernels/"), f"{path} includes {include}"
                starts.append(SOURCES / include)
            elif include in PLAIN_HEADERS:
                starts.append(HEADERS / include)
            else:  # memcpy moves bits between types where there are no intrinsics for it
                allowed = INTRINSICS | ({"cstring"} if path.name == "simd_generic.h" else set())
                assert include in allowed, f"{path} includes {include}"
    assert not {path.name for path in seen} & {"dispatch.h", "check.h", "memory.h"}


def test_public_headers_have_no_switches() -> None:
    for path in files("cpp/include", suffixes=CPP):
        text = path.read_text(encoding="utf-8")
        assert text.count("#pragma once") == 1, path
        assert not re.search(r"^\s*#\s*if", text, re.MULTILINE), path


# --- form


def test_first_lines() -> None:
    for path in files("cpp", "python", "tests", "bench", suffixes=(*CPP, ".py", ".pyi")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.suffix in CPP:
            assert lines[0] == "// SPDX-License-Identifier: MIT", path
            assert re.match(r"// \S.{15,}", lines[1]), f"{path} does not say what lives there"
        else:
            assert lines[0] == "# SPDX-License-Identifier: MIT", path
            assert ast.get_docstring(ast.parse("\n".join(lines))), f"{path} does not say what lives there"


def test_files_are_short() -> None:
    for path in files("cpp", "python", "tests", "bench", suffixes=(*CPP, ".py", ".txt", ".cmake")):
        limit = 650 if path.is_relative_to(ROOT / "tests") else 500
        if "resources" not in path.parts:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_cpp_is_ascii() -> None:
    for path in files("cpp", "python/bindings", "bench", suffixes=CPP):
        assert path.read_text(encoding="utf-8").isascii(), path


def test_core_neither_prints_nor_ends_the_process() -> None:
    for path in files("cpp/src", "cpp/include", "python/bindings", suffixes=CPP):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(printf|fprintf|puts|abort|exit|assert)\s*\(|std::(cout|cerr|clog)", text), path
        if path.name != "dispatch.cpp":
            assert "getenv" not in text, path


def test_version_is_in_one_place() -> None:
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert miaobi.__version__ == miaobi.build_info()["version"] == version[1]
    places = files("cpp", "python", "tests", "bench", suffixes=(*CPP, ".py", ".pyi", ".txt", ".cmake"))
    for path in [*places, ROOT / "CMakeLists.txt", ROOT / "CMakePresets.json"]:
        if "resources" not in path.parts:
            assert not re.search(rf"(?<![\d.]){re.escape(version[1])}(?![\d.])", path.read_text("utf-8")), path


# --- imports


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name for name in done.stdout.split() if "." not in name or name.startswith("miaobi.")}


def test_import_loads_little() -> None:
    heavy = {"jieba", "pkg_resources", "typer", "click", "rich", "torch", "matplotlib"}
    assert not loaded_after("import miaobi") & {*heavy, "numpy", "miaobi._core"}
    model = "import miaobi; miaobi.GPT(miaobi.GPTConfig(9, 8, 8, 1, 1)).forward([[1]]); miaobi.ops.gelu(1.0)"
    assert not loaded_after(model) & heavy
    every = "import miaobi; [getattr(miaobi, name) for name in miaobi.__all__]"
    assert not loaded_after(every) & (heavy - {"pkg_resources"})
    assert "miaobi.cli" in loaded_after("import miaobi.cli")


def test_public_names() -> None:
    assert sorted(miaobi.__all__) == sorted(set(miaobi.__all__))
    assert dir(miaobi) == sorted(miaobi.__all__)
    for name in miaobi.__all__:
        assert getattr(miaobi, name) is not None
    assert set(miaobi.__all__) >= {"GPT", "LLM", "Trainer", "JiebaTokenizer", "Vocab", "ops", "segment", "AdamW"}
    with pytest.raises(AttributeError, match="module 'miaobi' has no attribute 'tensor'"):
        miaobi.tensor  # noqa: B018
    source = ast.parse((ROOT / "python" / "miaobi" / "__init__.py").read_text("utf-8"))
    checked = next(node for node in source.body if isinstance(node, ast.If))
    typed = {alias.asname or alias.name for node in checked.body for alias in getattr(node, "names", [])}
    assert typed == set(miaobi.__all__)  # what a type checker sees is what there is


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(miaobi.__path__, "miaobi."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def undocumented(name: str, thing: Any) -> Iterator[str]:
    """Public functions, classes, methods and properties below `thing` that say nothing."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    if not inspect.getdoc(thing):
        yield name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            described = inspect.isroutine(plain) or isinstance(plain, property) or hasattr(plain, "__wrapped__")
            if not member.startswith("_") and described and not inspect.getdoc(plain):
                yield f"{name}.{member}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_everything_public_is_documented() -> None:
    missing = []
    for module in modules():
        assert module.__doc__, module.__name__
        if module is not _core:
            assert hasattr(module, "__all__"), f"{module.__name__} has no __all__"
        for name in getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")]):
            thing = getattr(module, name)
            # An alias of a type is no place for a text of its own.
            if getattr(thing, "__module__", "").startswith("miaobi"):
                missing += undocumented(f"{module.__name__}.{name}", thing)
    assert not missing


# --- the stub of the extension


def stub_functions(body: list[ast.stmt]) -> dict[str, list[str]]:
    """Names of functions, methods and properties with those of their arguments."""
    return {
        node.name: [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        for node in body
        if isinstance(node, ast.FunctionDef)
    }


def real_arguments(function: Any) -> list[str]:
    """From the signature that pybind11 puts into the text: name(a: type, b: type = value) -> type."""
    signature = (function.__doc__ or "").splitlines()[0]
    inside, depth, arguments = signature.partition("(")[2].rpartition(") ->")[0], 0, [""]
    for character in inside:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += character
    names = [re.split(r"[:=]", argument)[0].strip() for argument in arguments]
    return [name for name in names if name and name[0] not in "*/"]


def test_stub_fits_the_extension() -> None:
    stub = ast.parse((ROOT / "python" / "miaobi" / "_core.pyi").read_text("utf-8"))
    functions, classes = stub_functions(stub.body), {n.name: n for n in stub.body if isinstance(n, ast.ClassDef)}
    constants = {n.target.id for n in stub.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    public = {name: value for name, value in vars(_core).items() if not name.startswith("_")}
    assert functions.keys() == {name for name, value in public.items() if inspect.isroutine(value)}
    assert classes.keys() == {name for name, value in public.items() if inspect.isclass(value)}
    assert constants - {"__all__"} == {"__version__", *public} - functions.keys() - classes.keys()
    for name, arguments in functions.items():
        assert arguments == real_arguments(public[name]), name
    for name, node in classes.items():
        members, real = stub_functions(node.body), vars(public[name])
        assert {m for m in members if m[0] != "_"} == {m for m in real if m[0] != "_"}, name
        for member, arguments in members.items():
            if not isinstance(real[member], property):
                assert arguments == real_arguments(real[member]), f"{name}.{member}"
