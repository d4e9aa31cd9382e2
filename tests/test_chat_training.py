# SPDX-License-Identifier: MIT
"""Training on dialogues: answers alone are learnt, one template for all, other text mixed in, parameters left alone."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train_cli import POEMS, SMALL, Miaobi
from train_helpers import TEXTS, VALIDATION, config, make_model, run_until, weights

from miaobi.batches import IGNORED_TARGET, Batches, MixedBatches, TokenData
from miaobi.chat import ChatTemplate, parse_dialogue, render
from miaobi.corpus import read_corpus
from miaobi.errors import FormatError
from miaobi.generation import CHAT_DEFAULTS
from miaobi.llm import LLM
from miaobi.model import GPT, AdamW
from miaobi.scoring import Score, score_documents
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_events import EvaluationEvent, TrainEvent
from miaobi.trainer import Trainer


def dialogue(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


DIALOGUES = [
    dialogue("床前？", "明月光。"),
    dialogue("白日？", "依山尽。", "黄河？", "入海流。", system="说诗。"),
    dialogue("春眠？", "不觉晓。处处闻啼鸟。"),
]


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train([*TEXTS, *map(render, DIALOGUES)], 500, shrink=True)


miaobi = pytest.fixture(lambda monkeypatch, capsys: Miaobi(monkeypatch, capsys))


# --- the template ---


def test_segments_are_the_rendered_text_and_the_answers_are_learnt() -> None:
    template = ChatTemplate()
    for messages in DIALOGUES:
        segments = template.segments(messages)
        assert "".join(segment.text for segment in segments) == template.render(messages) == render(messages)
        assert all(one.learned != other.learned for one, other in pairwise(segments))
    assert template.segments(DIALOGUES[1]) == [
        ("系统：说诗。\n用户：白日？\n助手：", False),
        ("依山尽。\n用户：", True),  # that the answer is over is learnt, too
        ("黄河？\n助手：", False),
        ("入海流。", True),
    ]
    assert "\n用户：" in template.turn_starts


def test_tokens_of_segments_are_those_of_the_whole(tokenizer: JiebaTokenizer) -> None:
    data = TokenData.from_texts(DIALOGUES, tokenizer)
    for document, messages in zip(data.documents(), DIALOGUES, strict=True):
        assert list(document.ids) == [2, *tokenizer.encode(render(messages)), 3]
        prompt = [2, *tokenizer.encode(render(messages[:-1], add_generation_prompt=True))]
        assert list(document.ids[: len(prompt)]) == prompt  # what chat will show the model


def test_a_template_is_saved_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    template = ChatTemplate(user="问：", assistant="答：", separator=" ")
    template.save(tmp_path)
    assert ChatTemplate.load(tmp_path) == template
    assert ChatTemplate.load(tmp_path / "none") is None
    path = tmp_path / "miaobi_chat_template.json"
    good = json.loads(path.read_text("utf-8"))
    for bad in ({**good, "user": ""}, {**good, "user": 3}, {**good, "version": 9}, {**good, "more": 1}, []):
        path.write_text(json.dumps(bad), "utf-8")
        with pytest.raises(FormatError, match="expected"):
            ChatTemplate.load(tmp_path)


def test_chat_uses_the_template_of_the_model(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    template = ChatTemplate(user="黄", assistant="月", separator="。")
    model = make_model(tokenizer, n_positions=32)
    trainer = Trainer(model, tokenizer, config(steps=1), out_dir=tmp_path, chat_template=template)
    trainer.fit(DIALOGUES)
    with LLM.from_pretrained(tmp_path) as llm:
        assert llm.chat_template == template
        options: dict[str, Any] = {**CHAT_DEFAULTS, "do_sample": False, "max_new_tokens": 4}
        written = llm.generate("黄白日。月", stop=template.turn_starts, **options)
        assert llm.chat([{"role": "user", "content": "白日"}], **options) == written
        assert llm.fit_dialogue(DIALOGUES[0][:1]) == DIALOGUES[0][:1]


# --- what is learnt ---


def test_only_answers_and_their_ends_are_scored(tokenizer: JiebaTokenizer) -> None:
    data = TokenData.from_texts(DIALOGUES, tokenizer)
    (batch,) = Batches(data, 100, 1000).epoch()
    scored = [tokenizer.decode([t], skip_special_tokens=False) for t in batch.targets.tolist() if t >= 0]
    assert "".join(scored) == "明月光。</s>依山尽。\n用户：入海流。</s>不觉晓。处处闻啼鸟。</s>"
    assert batch.scored == data.learned == len(scored)
    assert data.characters.tolist() == [4, 12, 10]


def test_a_question_has_no_gradient_of_its_own(tokenizer: JiebaTokenizer) -> None:
    """The loss is that of the answers alone, computed from the logits."""
    model = make_model(tokenizer, n_positions=64)
    data = TokenData.from_texts(DIALOGUES[:1], tokenizer)
    (batch,) = Batches(data, 64, 1000).epoch()
    total, count = model.loss_backward(batch.ids, batch.targets, batch.offsets)
    logits = model.forward([batch.ids.tolist()])[0].astype(np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), np.maximum(batch.targets, 0)]
    assert count == len(tokenizer.encode("明月光。")) + 1
    assert total == pytest.approx(losses[batch.targets != IGNORED_TARGET].sum(), rel=1e-5)


@pytest.mark.parametrize("max_tokens", [3, 10, 25, 1000])
def test_no_answer_is_learnt_without_its_question(tokenizer: JiebaTokenizer, max_tokens: int) -> None:
    data = TokenData.from_texts(DIALOGUES, tokenizer)
    batches = Batches(data, 100, max_tokens, seed=1)
    starts = {tuple(document.ids[:3]) for document in data.documents()}
    learnt = 0
    for batch in batches.epoch():
        for start, end in zip(batch.offsets, batch.offsets[1:], strict=False):
            assert tuple(batch.ids[start:end][:3]) in starts or end - start < 3
        learnt += batch.scored
    assert learnt == data.learned


def test_batches_with_nothing_to_learn_are_passed_over(tokenizer: JiebaTokenizer) -> None:
    documents = [dialogue("床前明月光，疑是地上霜。" * 8, "霜。")]
    trainer = Trainer(make_model(tokenizer), tokenizer, config(steps=3, batch_size=1))
    end = trainer.fit(documents)
    assert end.tokens == 3 * (len(tokenizer.encode("霜。")) + 1)
    assert np.isfinite(trainer.model.arena).all()
    with pytest.raises(ValueError, match="without an answer"):
        Trainer(make_model(tokenizer), tokenizer, config()).fit([dialogue("霜？")])


def test_validation_looks_at_answers(tokenizer: JiebaTokenizer) -> None:
    model = make_model(tokenizer, n_positions=64)
    events: list[TrainEvent] = []
    Trainer(model, tokenizer, config(steps=1), listener=events.append).fit(DIALOGUES, DIALOGUES)
    (result,) = [event for event in events if isinstance(event, EvaluationEvent)]
    data = TokenData.from_texts(DIALOGUES, tokenizer)
    (batch,) = Batches(data, 64, 1000).epoch()
    nats = float(model.token_losses(batch.ids, batch.targets, batch.offsets).sum())
    assert result.loss == pytest.approx(nats / batch.scored, rel=1e-5)
    assert result.bits_per_character == pytest.approx(nats / math.log(2) / 26, rel=1e-5)


def test_accuracy_is_of_the_likeliest_token(tokenizer: JiebaTokenizer) -> None:
    model = make_model(tokenizer)
    data = TokenData.from_texts([*TEXTS, *DIALOGUES], tokenizer)
    found = sum(score_documents(model, data.documents()), Score(0.0, 0, 0))
    correct = tokens = 0
    for document in data.documents():
        ids, context = document.ids, model.config.n_positions
        for i in range(1, len(ids)):
            if document.scored is not None and not document.scored[i]:
                continue
            start = 0 if i <= context else -(-(i - context) // (context // 2)) * (context // 2)
            likeliest = int(model.forward([ids[start:i]])[0, -1].argmax())
            correct, tokens = correct + (likeliest == ids[i]), tokens + 1
    assert (found.correct, found.tokens) == (correct, tokens)
    assert found.accuracy == correct / tokens
    assert math.isnan(Score(0.0, 0, 0).accuracy)


# --- mixing in and leaving alone ---


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.9])
def test_each_batch_has_its_share_of_other_text(tokenizer: JiebaTokenizer, ratio: float) -> None:
    main = TokenData.from_texts(TEXTS * 4, tokenizer)
    other = TokenData.from_texts(["别的话。" * 3, "又一句别的。"], tokenizer)
    batches = MixedBatches(main, other, ratio, 16, 40, seed=2)
    plain = Batches(main, 16, 40 - round(40 * ratio), seed=2)
    seen = 0
    for epoch in range(3):
        for i in range(batches.batches_per_epoch):
            batch, alone = batches.batch(epoch, i), plain.batch(epoch, i)
            assert batch.ids[: len(alone.ids)].tolist() == alone.ids.tolist()
            mixed = len(batch.ids) - len(alone.ids)
            assert 0 < mixed <= round(40 * ratio)
            assert batch.offsets[-1] == len(batch.ids) == len(batch.targets)
            seen += mixed
    # The other text goes on from one epoch into the next, all of it.
    per_epoch = other.predictions
    expected = [Batches(other, 16, round(40 * ratio), seed=2)]
    assert seen == sum(
        len(expected[0].batch(*divmod(i, expected[0].batches_per_epoch)).ids)
        for i in range(3 * batches.batches_per_epoch)
    )
    assert per_epoch > 0
    with pytest.raises(ValueError, match="ratio above 0"):
        MixedBatches(main, other, 1.0, 16, 40)


def test_a_mixed_run_resumes_exactly(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    settings = config(mix_ratio=0.3)
    whole = Trainer(make_model(tokenizer), tokenizer, settings)
    whole.fit(DIALOGUES * 3, VALIDATION, TEXTS)
    part = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path)
    part.listener = lambda event: part.stop() if part.state.step == 4 else None
    part.fit(DIALOGUES * 3, VALIDATION, TEXTS)
    assert part.state.step == 4
    resumed = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path).resume(tmp_path)
    resumed.fit(DIALOGUES * 3, VALIDATION, TEXTS)
    assert weights(resumed) == weights(whole)
    other = Trainer(make_model(tokenizer), tokenizer, config(mix_ratio=0.4))
    with pytest.raises(ValueError, match=r"mix_ratio=0\.3, got mix_ratio=0\.4"):
        other.resume(tmp_path)
    run_until(2, make_model(tokenizer), tokenizer, config(steps=9), out_dir=tmp_path / "b")
    with pytest.raises(ValueError, match="not those"):
        Trainer(make_model(tokenizer), tokenizer, config(steps=9)).resume(tmp_path / "b").fit(TEXTS, None, VALIDATION)


def test_frozen_parameters_stay_and_the_norm_leaves_them_out(tokenizer: JiebaTokenizer) -> None:
    patterns = ("transformer.wte.*", "transformer.h.0.*")
    trainer = Trainer(make_model(tokenizer), tokenizer, config(freeze=patterns, weight_decay=0.5))
    before = {name: view.copy() for name, view in trainer.model.parameters().items()}
    trainer.fit(TEXTS)
    for name, view in trainer.model.parameters().items():
        frozen = name.startswith(("transformer.wte.", "transformer.h.0."))
        assert np.array_equal(view, before[name]) == frozen, name
    model = make_model(tokenizer)
    optimizer = AdamW(model, 0.1, freeze=["*ln_f*", "transformer.ln_f.bias"])
    for view in model.gradients().values():
        view[...] = 0
    model.gradients()["transformer.ln_f.weight"][...] = 5
    model.gradients()["transformer.wpe.weight"][0, 0] = 2
    assert optimizer.step() == pytest.approx(2.0)
    for wrong in ("transformer.h.9.*", "wte"):
        with pytest.raises(ValueError, match="expected freeze to name parameters"):
            AdamW(model, 0.1, freeze=[wrong])


# --- from the command line ---


def chats(path: Path, count: int = 6) -> Path:
    values = [{"messages": dialogue(poem[:5] + "？", poem[6:11] + "。")} for poem in POEMS * count]
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values), "utf-8")
    return path


def test_training_a_model_further_on_dialogues(tmp_path: Path, miaobi: Miaobi) -> None:
    poems = tmp_path / "poems.txt"
    poems.write_text("\n".join(POEMS * 3), "utf-8")
    base, bot = tmp_path / "base", tmp_path / "bot"
    miaobi.good("train", poems, "--out", base, "--steps", 2, *SMALL)
    arguments = (
        "train", chats(tmp_path / "chat.jsonl"), "--format", "chat", "--from", base, "--mix", poems,
        "--mix-ratio", 0.25, "--freeze", "transformer.wpe.*", "--out", bot, "--steps", 3, "--batch-size", 2,
    )  # fmt: skip
    text = miaobi.good(*arguments)
    assert "25 documents are there more than once; --deduplicate leaves them out" in text
    assert "of the tokens are learnt: the answers" in text
    assert "25% of each batch mixed in, frozen: transformer.wpe.*" in text
    assert f"miaobi chat {bot}" in text
    first, second = GPT.from_pretrained(base), GPT.from_pretrained(bot)
    moved = {n for n, view in first.parameters().items() if not np.array_equal(view, second.parameters()[n])}
    assert moved == set(first.parameters()) - {"transformer.wpe.weight"}
    assert (base / "miaobi_tokenizer.json").read_bytes() == (bot / "miaobi_tokenizer.json").read_bytes()
    assert [ChatTemplate.load(path) for path in (base, bot)] == [None, ChatTemplate()]
    assert "as they are in" in miaobi.good(*arguments[:-3], 4, *arguments[-2:], "--resume")
    text = miaobi.good("train", chats(tmp_path / "chat.jsonl"), "--format", "chat", "--deduplicate",
                       "--out", tmp_path / "c", "--steps", 1, *SMALL)  # fmt: skip
    assert "25 documents are left out" in text


def test_options_that_do_not_fit_are_refused(tmp_path: Path, miaobi: Miaobi) -> None:
    path = chats(tmp_path / "chat.jsonl")
    poems = tmp_path / "poems.txt"
    poems.write_text("\n".join(POEMS), "utf-8")
    out = ("--out", tmp_path / "out", "--steps", 1)
    assert "--format text or chat" in miaobi.refused("train", path, *out, "--format", "html")
    assert "expected a dialogue with an answer" in miaobi.refused("train", poems, *out, "--format", "chat")
    assert "--mix FILE" in miaobi.refused("train", path, *out, "--mix-ratio", 0.2)
    assert "--from, or" in miaobi.refused("train", path, *out, "--from", tmp_path, "--preset", "nano")
    assert "expected a model folder" in miaobi.refused("train", path, *out, "--from", tmp_path / "none")
    assert "freeze" in miaobi.refused("train", path, *out, "--freeze", "wte", *SMALL)
    assert "dropout" in miaobi.refused("train", path, *out, "--dropout", 1)
    assert "early_stopping" in miaobi.refused("train", path, *out, "--early-stopping", 2, "--val-fraction", 0, *SMALL)
    assert not (tmp_path / "out").exists()


def test_the_data_of_the_original_are_dialogues(data_dir: Path) -> None:
    corpus = read_corpus([data_dir / "qa/chat_more.json", data_dir / "qa/chat_training_data.json"], format="chat")
    messages: list[Any] = list(corpus)
    assert len(messages) == corpus.dialogues == 946 + 125
    assert all(parse_dialogue(render(found)) for found in messages)
