"""Which sites may take which formats: small TOML files.

::

    summary = "Five bits or more in the first and last layer"
    together = ["gate_up"]          # must share a format: "qkv", "gate_up"

    [[sites]]
    match = ["@head"]               # name patterns, operator types, or roles
    formats = ["int8_g64"]
    counted = false                 # its bits do not count in a budget of bits per weight

    [[sites]]
    match = ["*"]
    formats = ["trellis2_hyb_l12", "trellis3_hyb_l12", "int5", "float"]

The first ``[[sites]]`` that matches a site counts; a site that none matches stays as the recipe has
it. Roles: ``@head``, the language head; ``@first`` and ``@last``, the sites of the first and last
block (of models without blocks, the first and last site).
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pydantic

from onnxq.errors import RecipeError, nearest_word
from onnxq.formats import IntFormat, PerChannel, PerTensor, parse_format
from onnxq.graph.language_head import language_heads
from onnxq.graph.sites import Site
from onnxq.graph.topology import Topology
from onnxq.passes.site_patterns import is_meant

__all__ = ["Policy", "PolicyRow", "load_policy", "matched", "policy_names", "together"]

_ROLES = ("@head", "@first", "@last")
_TOGETHER = ("qkv", "gate_up")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


class PolicyRow(pydantic.BaseModel):
    """What some sites may take.

    Attributes:
        match: name patterns, operator types or roles.
        formats: names of formats, or ``float``.
        counted: whether their bits count in a budget of bits per weight.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    match: tuple[str, ...]
    formats: tuple[str, ...]
    counted: bool = True


class Policy(pydantic.BaseModel):
    """The rows of a policy; the first that matches a site counts.

    Attributes:
        summary: one line on what it does.
        together: sites that must share a format: ``qkv``, ``gate_up``.
        sites: the rows.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    summary: str = ""
    together: tuple[str, ...] = ()
    sites: tuple[PolicyRow, ...]

    def with_menu(self, formats: Sequence[str]) -> Policy:
        """The policy with other formats for the sites that no special row matches.

        Convolutions take the menu too when something in it can store one: an integer with a scale
        for each channel or one for all, or ``float``.

        Raises:
            FormatError: a name is no format.
        """
        row = PolicyRow(match=("*",), formats=tuple(_checked(name) for name in formats))
        replaced = [("*",), _CONVOLUTIONS] if any(map(_stores_convolutions, formats)) else [("*",)]
        rows = tuple(row for row in self.sites if row.match not in replaced)
        return self.model_copy(update={"sites": (*rows, row)})


def _stores_convolutions(name: str) -> bool:
    fmt = None if name == "float" else parse_format(name)
    return fmt is None or (
        isinstance(fmt, IntFormat) and isinstance(fmt.granularity, PerChannel | PerTensor)
    )


def policy_names() -> list[str]:
    """The policies shipped with onnxq, sorted."""
    folder = importlib.resources.files("onnxq.budget.policies")
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_policy(source: str | Path) -> Policy:
    """Read a policy by name, or a TOML file by path.

    Raises:
        RecipeError: there is none, it is no TOML, a key is unknown or a value of the wrong type.
        FormatError: a name is no format.
    """
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"Policy {path} cannot be read: {error.strerror}.") from error
    elif str(source) in policy_names():
        found = importlib.resources.files("onnxq.budget.policies") / f"{source}.toml"
        text = found.read_text(encoding="utf-8")
    else:
        near = nearest_word(str(source), policy_names())
        hint = f"; did you mean {near!r}?" if near else "."
        raise RecipeError(
            f"There is no policy {str(source)!r}{hint} Shipped are {', '.join(policy_names())}; a "
            "file of your own must end in .toml."
        )
    try:
        policy = Policy.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as error:
        raise RecipeError(f"Policy {str(source)!r} is not valid: {error}") from error
    _check(policy, str(source))
    return policy


def _check(policy: Policy, name: str) -> None:
    words = [(word, _ROLES) for row in policy.sites for word in row.match if word[:1] == "@"]
    for word, known in [*words, *((word, _TOGETHER) for word in policy.together)]:
        if word not in known:
            raise RecipeError(f"Policy {name!r} names {word!r}: there is {', '.join(known)}.")
    for row in policy.sites:
        for fmt in row.formats:
            _checked(fmt)


def _checked(name: str) -> str:
    return name if name == "float" else str(parse_format(name))


def matched(policy: Policy, model: ir.Model, sites: Sequence[Site]) -> dict[str, PolicyRow]:
    """The row of each site that has one, by name of the site."""
    roles = _roles(model, sites)
    found: dict[str, PolicyRow] = {}
    for site in sites:
        for row in policy.sites:
            if is_meant(site, row.match) or _has_role(site, row, roles):
                found[site.name] = row
                break
    return found


def _has_role(site: Site, row: PolicyRow, roles: Mapping[str, set[str]]) -> bool:
    return any(site.name in roles[word] for word in row.match if word in roles)


def _roles(model: ir.Model, sites: Sequence[Site]) -> Mapping[str, set[str]]:
    heads = {site.name for site in language_heads(model)}
    plain = [site.name for site in sites if site.name not in heads]
    topology = Topology(model)
    ends: list[set[str]] = [set(plain[:1]), set(plain[-1:])]
    if topology.attention or topology.mlps:
        for place, at in enumerate((0, -1)):
            members: list[Any] = []
            if topology.attention:
                block = topology.attention[at]
                members += [block.q, block.k, block.v, block.o]
            if topology.mlps:
                mlp = topology.mlps[at]
                members += [mlp.gate, mlp.up, mlp.down]
            ends[place] = {site.name for site in members if site is not None}
    return {"@head": heads, "@first": ends[0], "@last": ends[1]}


def together(policy: Policy, model: ir.Model, sites: Sequence[Site]) -> list[list[str]]:
    """Sites that must share a format: those of one weight, and those the policy names."""
    groups: list[set[str]] = []
    by_weight: dict[int, set[str]] = {}
    for site in sites:
        by_weight.setdefault(id(site.weight), set()).add(site.name)
    groups += by_weight.values()
    topology = Topology(model)
    named: list[tuple[Site | None, ...]] = []
    if "qkv" in policy.together:
        named += [(block.q, block.k, block.v) for block in topology.attention]
    if "gate_up" in policy.together:
        named += [(mlp.gate, mlp.up) for mlp in topology.mlps]
    known = {site.name for site in sites}
    groups += [{s.name for s in one if s is not None} & known for one in named]
    return _merged(groups, [site.name for site in sites])


def _merged(groups: Sequence[set[str]], order: Sequence[str]) -> list[list[str]]:
    """Groups of two or more, those with a member in common made one."""
    found: list[set[str]] = []
    for group in groups:
        apart = [other for other in found if not other & group]
        found = [*apart, set(group).union(*(other for other in found if other & group))]
    place = {name: at for at, name in enumerate(order)}
    ordered = [sorted(group, key=place.__getitem__) for group in found if len(group) > 1]
    return sorted(ordered, key=lambda group: place[group[0]])
