"""The page's style sheet: light and dark, wide and narrow, screen and paper; no font or picture is fetched.

Colours are variables, so that one place says them all and a test can hold their contrast.
"""

from typing import Final

from kdcache.distill.report.styles import DARK, LIGHT

LIGHT_INK: Final = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "rule": "#d7dce1",
    "link": "#0b57b0",
    "good": "#bfe3cf",
    "good-strong": "#8fd0ac",
    "bad": "#f6d3bd",
    "bad-strong": "#f0b28d",
    "gain": "#2f8f62",
    "loss": "#c05a1c",
    "unmoved": "#9aa3ad",
}
DARK_INK: Final = {
    "paper": "#161b22",
    "raised": "#1e252e",
    "ink": "#e6eaee",
    "muted": "#a3adb8",
    "rule": "#36404a",
    "link": "#7db7ff",
    "good": "#1d4a34",
    "good-strong": "#27694a",
    "bad": "#5a3018",
    "bad-strong": "#7c4120",
    "gain": "#5cc796",
    "loss": "#ee8f52",
    "unmoved": "#6b7580",
}
LIGHT_PARTS: Final = ("#bcc5cf", "#6b7680", "#5aa0e0", "#17497d", "#c9a227", "#d4633a", "#9a5fb0")
DARK_PARTS: Final = ("#5b6672", "#b3bcc6", "#2f6fb0", "#9fd0ff", "#dcc052", "#e8835a", "#b391c6")

_RULES = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .35em;letter-spacing:-.01em}
h2{font-size:1.3rem;line-height:1.25;margin:2.4em 0 .5em;padding-top:.9em;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4em 0 .4em}
p{margin:.5em 0;max-width:75ch}
a{color:var(--link)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;font-size:.86em}
pre{background:var(--raised);border:1px solid var(--rule);border-radius:6px;padding:12px 14px;overflow-x:auto;margin:.5em 0}
.answer{font-size:1.2rem;line-height:1.45;max-width:66ch;margin:.2em 0 .8em}
.about,.note,figcaption,.muted{color:var(--muted)}
.note{font-size:.9rem}
.facts{display:flex;flex-wrap:wrap;gap:1px;background:var(--rule);
border:1px solid var(--rule);border-radius:8px;overflow:hidden;margin:1.2em 0;padding:0}
.facts div{background:var(--paper);padding:10px 14px;flex:1 1 220px}
.facts dt{color:var(--muted);font-size:.82rem}
.facts dd{margin:0;font-size:1.02rem;font-weight:600;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:12px 32px;align-items:start}
figure{margin:1em 0;min-width:0}
figcaption{font-size:.9rem;margin-bottom:.5em;max-width:70ch}
figcaption b{color:var(--ink)}
svg{display:block;width:100%;height:auto;max-width:560px;overflow:visible}
svg.key{display:inline-block;width:14px;height:14px;vertical-align:-2px;margin-right:7px}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums}
svg .tick,svg .muted{fill:var(--muted)}
svg .tick{font-size:12px}
svg .strong{font-weight:600}
svg .halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--muted);stroke-width:1}
.lead{stroke:var(--muted);stroke-width:.8;fill:none;opacity:.7}
.limit{stroke:var(--muted);stroke-width:1.4;stroke-dasharray:2 3}
.band{fill:var(--muted);opacity:.14}
.line{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:round}
.rest.line{stroke-width:1.2;opacity:.75}
.unmoved{stroke:var(--unmoved);stroke-width:1.4}
.interval{stroke:var(--c);stroke-width:3;opacity:.55}
.mark{fill:var(--c);stroke:var(--paper);stroke-width:1}
.seed{fill:var(--paper);stroke:var(--c);stroke-width:1.4}
.stroke{stroke:var(--c);stroke-width:2;fill:none}
.dot{fill:var(--paper);stroke:var(--ink);stroke-width:1.1}
.gain{fill:var(--gain)}.loss{fill:var(--loss)}
.baseline{--c:var(--ink)}.plain{--c:var(--c0)}.rest{--c:var(--muted)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:.4em 0;font-size:.88rem}
.swatch{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:7px;vertical-align:-1px}
.scroll{overflow-x:auto;margin:1.3em 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,420px)}
caption{text-align:left;color:var(--muted);font-size:.9rem;padding-bottom:.4em}
th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom}
tbody th{font-weight:500;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap;padding-left:8px}
table.heat td{padding:4px 10px;border:1px solid var(--paper)}
table.heat th.n{padding-right:10px}
.g2{background:var(--good-strong)}.g1{background:var(--good)}.b1{background:var(--bad)}.b2{background:var(--bad-strong)}
.samples{display:grid;gap:6px;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));margin:.4em 0 1.2em;padding:0}
.samples figure{margin:0}
.samples figcaption{font-size:.82rem;margin:2px 0 0}
.samples img{display:block;width:100%;height:auto;border-radius:3px;image-rendering:auto}
.error{color:var(--ink);white-space:pre-wrap;overflow-wrap:anywhere}
footer{margin-top:3em;color:var(--muted);font-size:.88rem}
@media (max-width:560px){
body{font-size:15px}main{padding:18px 14px 40px}h1{font-size:1.5rem}.answer{font-size:1.08rem}
.samples{grid-template-columns:repeat(2,1fr)}.facts div{flex-basis:130px}
}
@page{size:A4;margin:14mm 13mm}
@media print{
body{font-size:10.5pt}main{max-width:none;padding:0}
h2{break-after:avoid;margin-top:1.4em}h3,caption,figcaption{break-after:avoid}
figure,tr,.facts,.samples figure,.keep{break-inside:avoid}thead{display:table-header-group}
.pair{grid-template-columns:1fr 1fr;gap:8px 20px}.pair.one{grid-template-columns:1fr}
.scroll{overflow:visible}table{font-size:8.5pt}table.heat td{padding:2px 5px}table.heat{font-size:7.5pt}
pre{white-space:pre-wrap;overflow-wrap:anywhere}.samples{grid-template-columns:repeat(4,1fr)}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}a{color:inherit;text-decoration:none}
}
"""


def style_sheet() -> str:
    """All of it. Paper is always light."""
    classes = "".join(f".c{n}{{--c:var(--c{n})}}" for n in range(len(LIGHT)))
    classes += "".join(f".p{n}{{fill:var(--p{n});background:var(--p{n})}}" for n in range(len(LIGHT_PARTS)))
    light, dark = _variables(LIGHT_INK, LIGHT, LIGHT_PARTS), _variables(DARK_INK, DARK, DARK_PARTS)
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}{_RULES}"
    )


def _variables(ink: dict[str, str], lines: tuple[str, ...], parts: tuple[str, ...]) -> str:
    named = ink | {f"c{n}": colour for n, colour in enumerate(lines)}
    named |= {f"p{n}": colour for n, colour in enumerate(parts)}
    return "".join(f"--{name}:{colour};" for name, colour in named.items())
