# SPDX-License-Identifier: MIT
"""What all tests share: settings that are put back after each, and the path of optional data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from llm_helpers import small_model, small_tokenizer

import miaobi
from miaobi.llm import LLM
from miaobi.model import GPT
from miaobi.tokenizer import JiebaTokenizer

REPOSITORY = Path(__file__).parents[1]


def pytest_configure() -> None:
    """MIAOBI_TEST_BACKEND names the backend of the matrix products that all tests run with."""
    if backend := os.environ.get("MIAOBI_TEST_BACKEND"):
        miaobi.set_backend(backend)


@pytest.fixture
def builtin_backend() -> None:
    """For tests of what the built-in matrix product alone promises: the same bits for any threads and neighbours."""
    miaobi.set_backend("builtin")  # put back by _engine_settings


def pytest_report_header() -> str:
    info = miaobi.build_info()
    return f"miaobi {info['version']}: {info['isa']}, {info['backend']}, {info['threads']} threads, {info['cpu']}"


@pytest.fixture(autouse=True)
def _engine_settings() -> Iterator[None]:
    """Threads, backend and precision belong to the process: each test leaves them as it found them."""
    before = miaobi.get_num_threads(), miaobi.get_backend(), miaobi.get_matmul_precision()
    yield
    miaobi.set_num_threads(before[0])
    miaobi.set_backend(before[1])
    miaobi.set_matmul_precision(before[2])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Chinese text that may lie beside the repository; no part of it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


@pytest.fixture
def tokenizer() -> JiebaTokenizer:
    """That of the small model."""
    return small_tokenizer()


@pytest.fixture
def model() -> GPT:
    """The small model of the tests of generation. Shared: not to be changed."""
    return small_model()


@pytest.fixture
def llm(model: GPT, tokenizer: JiebaTokenizer) -> LLM:
    """A new LLM of the small model."""
    return LLM(model, tokenizer)
