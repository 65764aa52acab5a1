"""The style sheet of the report page, for light and dark, wide and narrow. Depends on nothing."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --sheet: #fff; --ink: #1c1d1f; --soft: #5d6168;
  --edge: #dfe1e4; --plain: #c2410c; --guarded: #0e7490; --fault: #f3c34a44; }
@media (prefers-color-scheme: dark) { :root { --ground: #141517; --sheet: #1c1e21; --ink: #eceded;
  --soft: #a0a5ad; --edge: #34373c; --plain: #fb923c; --guarded: #22d3ee; --fault: #eab30826; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.05rem; margin: 32px 0 8px; }
p { max-width: 75ch; margin: 0 0 12px; }
.lead, small, figcaption small, .what, .pair span, time { color: var(--soft); }
.plain { color: var(--plain); } .guarded { color: var(--guarded); }
.cards { display: grid; gap: 12px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
.card, figure, table, pre { background: var(--sheet); border: 1px solid var(--edge); border-radius: 8px; }
.card { padding: 10px 16px 12px; }
.what { font-size: .9rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; }
.pair b { display: block; font-size: clamp(1.4rem, 6vw, 2rem); white-space: nowrap;
  line-height: 1.2; font-variant-numeric: tabular-nums; }
.pair span { font-size: .85rem; }
.legend { margin: 16px 0 6px; font-size: .9rem; }
.legend i { display: inline-block; width: 18px; height: 3px; margin: 0 4px 4px 0; background: currentColor; }
.legend i + i, .legend i.guarded { margin-left: 14px; }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
figure { margin: 0; padding: 10px 8px 4px; }
figcaption { padding: 0 8px 4px; font-weight: 600; font-size: .95rem; }
figcaption small { display: block; font-weight: 400; min-height: 1.5em; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .y { text-anchor: end; } svg .x, svg .fault-word { text-anchor: middle; }
svg .grid { stroke: var(--edge); stroke-width: 1; } svg .fault { fill: var(--fault); }
svg .rule { stroke: var(--soft); stroke-width: 1; }
svg path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg path.tail { stroke-width: 1.5; stroke-dasharray: 1 4; }
.warning { border-left: 4px solid var(--plain); padding: 8px 14px; background: var(--sheet); }
dl { margin: 0; } dl div { display: flex; flex-wrap: wrap; gap: 0 12px; }
dt { min-width: 7.5em; color: var(--soft); } dd { margin: 0; min-width: 0;
  overflow-wrap: anywhere; flex: 1 1 16em; }
.columns { display: grid; gap: 0 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.columns > div { min-width: 0; }
ins { text-decoration: none; color: var(--guarded); }
table { border-collapse: separate; border-spacing: 0; width: 100%; padding: 4px 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: right; } td { white-space: nowrap; }
th[scope=row] { text-align: left; font-weight: 400; }
tbody th, tbody td { border-top: 1px solid var(--edge); }
pre { padding: 12px 16px; margin: 0; overflow-x: auto; font-size: .85rem; }
pre.wrapped { white-space: pre-wrap; overflow-wrap: anywhere; }
.timeline { list-style: none; margin: 0; padding: 0; columns: 290px; font-variant-numeric: tabular-nums; }
.timeline li { white-space: nowrap; }
.timeline time { display: inline-block; min-width: 4.5em; text-align: right; margin-right: 6px; }
.timeline .open { color: var(--plain); } .timeline .closed { color: var(--guarded); }
"""
