"""Figure of what certificates count, against what the fits promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from radiant_lens import _checks
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.steering.held_out import HeldOutCertificate
from radiant_lens.viz import _style as style


def still_flagged(
    certificates: Mapping[str, Sequence[HeldOutCertificate]],
    *,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot the share of gated tokens still flagged after the edit against gamma, the share that the fit allows.

    Points above the dotted line break the nominal promise. Bars are 95% intervals over groups.

    Args:
        certificates: of fits with several values of gamma, by the name of their curve.
        width, height: in pixels; default the page's width, and 440.

    Raises:
        InvalidArgumentError: no certificates, one without a gamma, something else than certificates by name, or a size
            below 100 pixels.

    Example:
        >>> still_flagged({"gaussian": [steering.certify(test_cache) for steering in fits]}).show()  # doctest: +SKIP
    """
    _require_certificates(certificates)
    figure = go.Figure()
    gammas: set[float] = set()
    for i, (name, members) in enumerate(certificates.items()):
        rows = sorted((c.gamma or 0.0, c.overall.token_share) for c in members)
        gammas |= {gamma for gamma, _ in rows}
        bars = {
            "type": "data",
            "array": [share.high - share.value for _, share in rows],
            "arrayminus": [share.value - share.low for _, share in rows],
        }
        figure.add_scatter(
            x=[gamma for gamma, _ in rows],
            y=[share.value for _, share in rows],
            error_y=bars,
            mode="lines+markers",
            name=style.escaped(name),
            line={"color": style.COLORS[i % len(style.COLORS)], "dash": style.DASHES[i % 2]},
            marker={"symbol": style.SYMBOLS[i % len(style.SYMBOLS)], "size": 9},
            hovertemplate=f"{style.escaped(name)}<br>gamma %{{x:.3g}}: %{{y:.1%}} still flagged<extra></extra>",
        )
    ends = sorted(gammas)
    nominal = {"color": style.GREY, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=nominal, name="nominal: as many as gamma", hoverinfo="skip")
    style.legend_below(figure)
    return style.styled(
        figure,
        "Gated tokens still flagged after the edit",
        style.Size(width, height),
        note="Above the dotted line the nominal promise is broken. Bars: 95% intervals over groups.",
        x="gamma: share that the fit allows (logarithmic scale)",
        y="share still flagged",
        xaxis={"type": "log", "tickvals": ends, "ticktext": [f"{gamma:.3g}" for gamma in ends]},
        yaxis={"rangemode": "tozero", "tickformat": ".0%"},
    )


def _require_certificates(certificates: Mapping[str, Sequence[HeldOutCertificate]]) -> None:
    hint = "lists of certificates by name, such as {'gaussian': [certificate]}"
    _checks.instance("certificates", certificates, Mapping, hint=hint)
    if not certificates:
        raise InvalidArgumentError("`certificates` must hold at least one curve; got none.")
    for name, members in certificates.items():
        _checks.each(f"certificates[{name!r}]", members, HeldOutCertificate)
        if not members:
            raise InvalidArgumentError(f"certificates[{name!r}] must hold at least one certificate; got none.")
        if any(certificate.gamma is None for certificate in members):
            raise InvalidArgumentError(
                f"certificates[{name!r}] must be of fits that have a gamma; one has None, as policies without a "
                "promise do."
            )
