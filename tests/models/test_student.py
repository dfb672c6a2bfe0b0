import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

# Float64 rounding, some hundred operations deep, on logits of order 10; a spike that flips would show as 1e-2 or more.
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
# transformers computes every loss in float32.
FLOAT32_ROUNDING = 1e-5
PAD = 0


def pad(ids, left=0, right=0):
    return functional.pad(ids, (left, right), value=PAD), functional.pad(torch.ones_like(ids), (left, right))


def step_logits(student, ids):
    cache, logits = None, []
    for column in ids.split(1, dim=1):
        output = student(column, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def test_step_form_equals_sequence_form(student, ids):
    torch.testing.assert_close(step_logits(student, ids), student(ids).logits, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_step_form_equals_sequence_form_on_other_backends(make_student, ids, backend):
    student = make_student(scan_backend=backend)
    torch.testing.assert_close(step_logits(student, ids), make_student()(ids).logits, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 7, 19])
def test_a_sequence_cut_in_two_is_the_whole(student, ids, cut):
    first = student(ids[:, :cut], use_cache=True)
    second = student(ids[:, cut:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), student(ids).logits, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 8, 19])
def test_changing_a_token_leaves_earlier_logits_equal(student, ids, time):
    changed = ids.clone()
    changed[:, time] = changed[:, time] % 96 + 1
    before, after = student(ids).logits, student(changed).logits
    assert torch.equal(before[:, :time], after[:, :time])
    assert not torch.equal(before[:, time], after[:, time])


@torch.no_grad()
def test_a_row_alone_is_the_row_in_its_batch(student, ids):
    alone = torch.cat([student(row).logits for row in ids.split(1)])
    torch.testing.assert_close(alone, student(ids).logits, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("padding", [{"left": 5}, {"right": 5}, {"left": 2, "right": 3}])
def test_padding_changes_no_logit_of_a_valid_token(student, ids, padding):
    padded, mask = pad(ids, **padding)
    logits = student(padded, attention_mask=mask).logits[mask.bool()].view(*ids.shape, -1)
    torch.testing.assert_close(logits, student(ids).logits, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("padding", [{"left": 5}, {"right": 5}])
def test_padding_changes_nothing_in_the_recorded_scan_either(make_student, ids, padding):
    student = make_student(recurrence="recorded")
    padded, mask = pad(ids, **padding)
    logits = student(padded, attention_mask=mask).logits[mask.bool()].view(*ids.shape, -1)
    torch.testing.assert_close(logits, student(ids).logits, **ROUNDING)


@pytest.mark.parametrize("scale", ["none", "token"])
@pytest.mark.parametrize("surrogate", ["clipped_ste", "sigmoid", "recorded_ste"])
def test_silent_tokens_stay_finite_forward_and_backward(make_student, scale, surrogate):
    student = make_student(positions="none", spikes={"scale": scale, "surrogate": {"kind": surrogate}})
    silence = torch.zeros(2, 9, 24, dtype=torch.float64, requires_grad=True)
    logits = student(inputs_embeds=silence).logits
    logits.logsumexp(dim=-1).sum().backward()
    assert logits.isfinite().all()
    assert silence.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in student.parameters() if weight.grad is not None)


@torch.no_grad()
def test_a_student_saved_is_the_student_loaded(student, ids, tmp_path):
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(student)
    assert torch.equal(loaded(ids).logits, student(ids).logits)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
    assert torch.equal(loaded.generate(ids, **options), student.generate(ids, **options))


@torch.no_grad()
def test_the_body_alone_loads_from_a_saved_student(student, ids, tmp_path):
    student.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body(ids).last_hidden_state, student(ids).last_hidden_state)


def test_tied_head_is_the_token_embedding(make_student):
    student = make_student()
    assert student.lm_head.weight is student.model.embed_tokens.weight
    untied = make_student(tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_the_sequence_form(student, ids):
    produced = student.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=PAD)
    by_hand = ids
    for _ in range(12):
        by_hand = torch.cat((by_hand, student(by_hand).logits[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(produced, by_hand)


@torch.no_grad()
def test_generation_with_left_padding_is_generation_alone(student, ids):
    padded, mask = pad(ids, left=4)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
    together = student.generate(padded, attention_mask=mask, **options)[:, 4:]
    alone = torch.cat([student.generate(row, **options) for row in ids.split(1)])
    assert torch.equal(together, alone)


@torch.no_grad()
def test_more_tokens_than_learned_positions_are_refused_in_one_line(plain_student):
    with pytest.raises(ValueError, match=r"reaches 49 tokens.* 48 learned positions") as caught:
        plain_student(torch.ones(1, 49, dtype=torch.long))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_learned_positions_run_out_across_calls_too(plain_student):
    cache = plain_student(torch.ones(1, 48, dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="reaches 49 tokens"):
        plain_student(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("padding", [{"left": 40}, {"right": 40}])
def test_padding_uses_no_positions_up(plain_student, ids, padding):
    padded, mask = pad(ids, **padding)
    logits = plain_student(padded, attention_mask=mask).logits[mask.bool()].view(*ids.shape, -1)
    torch.testing.assert_close(logits, plain_student(ids).logits, **ROUNDING)


@torch.no_grad()
def test_without_positions_no_length_is_too_long(make_student):
    assert make_student(positions="none")(torch.ones(1, 200, dtype=torch.long)).logits.isfinite().all()


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_the_next_token(student, ids):
    labels = ids.clone()
    labels[1, 5:9] = -100
    log_probability = student(ids).logits.log_softmax(dim=-1)
    scored = [
        log_probability[row, time, labels[row, time + 1]]
        for row in range(3)
        for time in range(19)
        if labels[row, time + 1] != -100
    ]
    expected = -sum(scored) / len(scored)
    assert float(student(ids, labels=labels).loss) == pytest.approx(float(expected), abs=FLOAT32_ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("kept", [1, 3])
def test_logits_to_keep_are_the_last_ones(plain_student, ids, kept):
    logits = plain_student(ids, logits_to_keep=kept).logits
    torch.testing.assert_close(logits, plain_student(ids).logits[:, -kept:], **ROUNDING)


@torch.no_grad()
def test_spikes_of_every_block_are_integers_within_the_levels(make_student, ids):
    student = make_student(spikes={"levels": 3, "sites": ["v"]})
    spikes = student(ids, output_spikes=True).spikes
    assert [list(sites) for sites in spikes] == [["v"]] * 3
    assert all(set(sites["v"].unique().tolist()) <= {-3, -2, -1, 0, 1, 2, 3} for sites in spikes)


@torch.no_grad()
def test_hidden_states_are_the_embedding_and_every_block(student, ids):
    output = student(ids, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    last = student.model.norm(output.hidden_states[-1])
    for encoder in student.model.encoders.values():
        last = encoder(last).dense()
    torch.testing.assert_close(last, output.last_hidden_state, **ROUNDING)


@torch.no_grad()
def test_a_tuple_is_returned_where_it_is_asked_for(plain_student, ids):
    logits, *_ = plain_student(ids, return_dict=False)
    assert torch.equal(logits, plain_student(ids).logits)


@pytest.mark.parametrize(
    "arguments", [{}, {"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 24)}]
)
def test_ids_or_embeddings_are_given_exactly_once(plain_student, arguments):
    with pytest.raises(ValueError, match="exactly one"):
        plain_student(**arguments)


def test_a_student_learns_real_text(make_student, real_text, teacher_directory):
    ids = torch.tensor(AutoTokenizer.from_pretrained(teacher_directory)(real_text[:20_000])["input_ids"])
    batch = ids[: 8 * 40].view(8, 40)
    student = make_student(vocab_size=4096).float().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = student(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.0


@torch.no_grad()
@pytest.mark.parametrize("projection", ["key", "value", "receptance", "output", "up", "down", "gate"])
# peft 0.17 and later ask transformers 5.23 for a property that it renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_lora_adapter_on_any_projection_changes_the_output(make_student, ids, projection):
    from peft import LoraConfig, get_peft_model

    student = make_student(mlp="swiglu")
    before = student(ids).logits
    adapted = get_peft_model(student, LoraConfig(r=2, target_modules=[projection]))
    torch.testing.assert_close(adapted(ids).logits, before, **ROUNDING)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(adapted(ids).logits, before, atol=1e-3)
