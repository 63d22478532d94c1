"""Text drawn from a model: its own distribution, prompts that do not disturb each other, and a model left as it was."""

from collections import Counter

import pytest

from harness.errors import ModelError, SpecError
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
from harness.training.sampling import Sampling, end_tokens, require_room, sample  # noqa: E402

EOS = 1
PROMPTS = [[5, 9, 300], [7], [40, 41, 42, 43, 44, 45, 46]]


@pytest.fixture
def model(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path_factory.mktemp("model"))).eval()


def greedy(model, prompt, *, ends, length: int) -> list[int]:
    """The likeliest continuation, alone, one argmax at a time, without a cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            if tokens[-1] in ends:
                break
    return tokens[len(prompt) :]


def test_temperature_0_takes_the_likeliest_whatever_stands_beside_it(model):
    found = sample(model, PROMPTS, how=Sampling(10, 0.0, {EOS}))
    assert found == [greedy(model, prompt, ends={EOS}, length=10) for prompt in PROMPTS]


def test_a_continuation_keeps_its_end_token_and_nothing_after_it(model):
    likely = greedy(model, PROMPTS[0], ends=(), length=10)
    ends = {likely[4], EOS}
    (found,) = sample(model, PROMPTS[:1], how=Sampling(10, 0.0, ends))
    assert found == likely[: min(likely.index(end) for end in ends if end in likely) + 1]
    assert found[-1] in ends


def test_without_end_tokens_every_continuation_has_full_length(model):
    assert {len(tokens) for tokens in sample(model, PROMPTS, how=Sampling(6, 1.0, ()))} == {6}


def shares(model, temperature: float, draws: int = 2000) -> dict[int, float]:
    torch.manual_seed(0)
    drawn = sample(model, [[5]] * draws, how=Sampling(1, temperature, {EOS}))
    return {token: count / draws for token, count in Counter(tokens[0] for tokens in drawn).items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_follow_the_distribution_at_the_temperature(temperature, model):
    with torch.inference_mode():
        p = (model(torch.tensor([[5]])).logits[0, -1] / temperature).softmax(-1)
    found = shares(model, temperature)
    for token in p.topk(5).indices.tolist():  # each share is binomial around its probability
        expected = float(p[token])
        assert abs(found.get(token, 0.0) - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5


def test_a_models_own_settings_do_not_bend_the_distribution_and_are_left_as_they_were(model):
    plain = shares(model, 1.0, draws=300)
    bent = model.generation_config
    bent.update(do_sample=True, top_k=2, temperature=0.1, repetition_penalty=3.0, min_new_tokens=1)
    before = bent.to_dict()
    assert shares(model, 1.0, draws=300) == plain
    assert model.generation_config is bent
    assert bent.to_dict() == before


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_left_in_its_mode_and_draws_without_dropout(is_training, model):
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train(is_training)
    assert sample(model, PROMPTS[:1], how=Sampling(5, 0.0, {EOS})) == [
        greedy(model.eval(), PROMPTS[0], ends={EOS}, length=5)
    ]
    model.train(is_training)
    sample(model, PROMPTS, how=Sampling(2, 1.0, {EOS}))
    assert model.training is is_training


def test_what_is_drawn_follows_from_torchs_random_state(model):
    how = Sampling(8, 1.0, {EOS})
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (sample(model, PROMPTS, how=how) for _ in range(2))
    torch.set_rng_state(state)
    assert sample(model, PROMPTS, how=how) == first != second


def test_weights_that_are_computed_when_used_are_computed_once(model):
    from torch.nn.utils import parametrize

    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, weight):
            Counting.calls += 1
            return weight * 1.0

    expected = sample(model, PROMPTS, how=Sampling(6, 0.0, ()))
    parametrize.register_parametrization(model.model.layers[0].mlp.down_proj, "weight", Counting(), unsafe=True)
    Counting.calls = 0
    assert sample(model, PROMPTS, how=Sampling(6, 0.0, ())) == expected
    assert Counting.calls == 1


def test_adapters_take_part_and_the_settings_inside_are_left_too(model):
    peft = pytest.importorskip("peft")
    own = model.generation_config
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    )
    with wrapped.disable_adapter():
        plain = sample(wrapped, PROMPTS, how=Sampling(8, 0.0, ()))
    found = sample(wrapped, PROMPTS, how=Sampling(8, 0.0, ()))
    assert found == [greedy(wrapped, prompt, ends=(), length=8) for prompt in PROMPTS]
    assert found != plain
    assert wrapped.get_base_model().generation_config is own


def test_logits_that_are_no_numbers_are_the_models_error_and_leave_it_as_it_was(model):
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    own = model.generation_config
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="no numbers"):
            sample(model.train(), PROMPTS, how=Sampling(3, temperature, {EOS}))
    assert model.generation_config is own
    assert model.training


def test_a_text_longer_than_the_model_can_attend_to_is_refused(model):
    require_room(model, 512)
    with pytest.raises(SpecError, match="do not fit"):
        sample(model, PROMPTS, how=Sampling(506, 1.0, {EOS}))


def test_the_end_tokens_are_those_of_the_models_settings(model):
    assert end_tokens(model) == {EOS}
    model.generation_config.eos_token_id = [4, 2]
    assert end_tokens(model) == {2, 4}
    model.generation_config.eos_token_id = None
    assert end_tokens(model) == frozenset()
