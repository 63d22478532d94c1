"""What every plug-in of every kind must keep, over all entry points of this distribution."""

import inspect

import pytest

from harness import plugins
from harness.testing import HEADINGS, check_plugin

OURS = [
    (kind, name)
    for kind in plugins.KINDS
    for name, point in plugins.installed(kind).items()
    if point.dist and point.dist.name == "compression-harness"
]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_plugin_declares_what_the_contract_asks(kind, name) -> None:
    check_plugin(kind, plugins.load(kind, name))


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_plugin_explains_itself_under_the_same_headings(kind, name) -> None:
    text = inspect.getdoc(plugins.load(kind, name)) or ""
    places = [text.find(heading) for heading in HEADINGS[kind]]
    assert -1 not in places, [h for h, p in zip(HEADINGS[kind], places, strict=True) if p == -1]
    assert places == sorted(places)


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_extra_that_a_plugin_names_can_be_installed(kind, name) -> None:
    from harness.environments import extras

    extra = plugins.load(kind, name).extra
    assert extra is None or extra in extras()


def test_every_kind_has_a_builtin() -> None:
    assert {kind for kind, _ in OURS} == set(plugins.KINDS)
