"""The style sheet of reports: for light, dark, narrow and printed pages."""

# Shares of an image count, from the smallest to all: the eight depths of the confusion table.
NUM_DEPTHS = 8
_DEPTHS = "".join(
    f".matrix td.{kind}{depth}{{background:rgb(var(--{name})/{0.08 * depth:.2f})}}"
    for kind, name in (("r", "right"), ("w", "wrong"))
    for depth in range(1, NUM_DEPTHS + 1)
)

STYLE = (
    """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;
--ground:#f6f8fa;--accent:#0b5cad;--right:11 92 173;--wrong:213 94 0;--bar:#0b5cad;--warn:#9a4b00}
@media screen and (prefers-color-scheme:dark){:root{--paper:#0f1318;--ink:#e2e7ed;--soft:#9aa5b1;
--line:#2b333d;--ground:#171d24;--accent:#79b8ff;--right:84 160 240;--wrong:240 130 50;
--bar:#54a0f0;--warn:#f0a868}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:break-word}
header,main,footer{max-width:66rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:3rem}
h1{font-size:2.1rem;line-height:1.2;letter-spacing:-.02em;margin:.2rem 0 .6rem}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:0 0 .7rem}
h3{font-size:1.02rem;margin:1.6rem 0 .5rem}
p{margin:.5rem 0 .9rem;max-width:46rem}
.kicker{color:var(--soft);font-size:.82rem;letter-spacing:.08em;text-transform:uppercase;margin:0}
.lead{font-size:1.12rem;line-height:1.5}
.note,figcaption,footer,.sub{color:var(--soft);font-size:.875rem}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.9rem;padding:.7rem 0;
border-top:1px solid var(--line);border-bottom:1px solid var(--line)}
section{margin:2.6rem 0;scroll-margin-top:1rem}
article{border-top:3px solid var(--ink);margin-top:4rem;padding-top:1.5rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:1rem;
margin:1.4rem 0}
.figures div{border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;
background:var(--ground)}
.figures b{display:block;font-size:1.65rem;line-height:1.25;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.figures span{color:var(--soft);font-size:.85rem}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.4rem 1.5rem;margin:0}
dt{color:var(--soft)}dd{margin:0;min-width:0;overflow-wrap:anywhere}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{overflow-wrap:anywhere}
pre{background:var(--ground);border:1px solid var(--line);border-radius:8px;padding:.9rem 1.1rem;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.6rem 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;width:100%}
th,td{text-align:left;vertical-align:top;padding:.42rem .8rem .42rem 0;
border-bottom:1px solid var(--line);unicode-bidi:isolate}
thead th{color:var(--soft);font-weight:600;font-size:.84rem;vertical-align:bottom;
border-bottom-color:var(--soft)}
tbody th{font-weight:500}
tr.own th,tr.own td{font-weight:650}
.bar{display:block;width:100%;min-width:5rem;height:6px;margin-top:.25rem}
.bar .track{fill:var(--line)}.bar .value{fill:var(--soft)}tr.own .bar .value{fill:var(--bar)}
.sub{font-weight:400}.bar+.sub{margin-top:.3rem}
.missing{border-left:4px solid var(--warn);background:var(--ground);padding:.7rem 1rem;
max-width:none;border-radius:0 6px 6px 0;overflow-wrap:anywhere}
.missing b{color:var(--warn)}
figure{margin:0}.wide+figure{margin-top:1.4rem}
.plot{display:block;width:100%;min-width:40rem;height:auto;color:var(--ink);fill:currentColor}
.plot [stroke="#000000"]{stroke:currentColor}.plot [fill="#000000"]{fill:currentColor}
.plot [fill="#ffffff"]{fill:var(--paper)}.plot [stroke="#ffffff"]{stroke:var(--paper)}
img{display:block;max-width:100%;height:auto}
.kernels{background:#fff;border:1px solid var(--line);border-radius:8px;padding:.8rem;
width:max-content;max-width:100%}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1.2rem 1rem}
.tiles img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:6px;background:var(--ground)}
figcaption{line-height:1.35;margin-top:.4rem;overflow-wrap:anywhere;unicode-bidi:isolate}
figcaption b{color:var(--ink)}figcaption div{unicode-bidi:isolate}
.file{font-size:.75rem;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.neighbors{display:grid;grid-template-columns:repeat(7,minmax(4.5rem,1fr));gap:.7rem;
min-width:38rem;padding:.4rem}
.neighbors img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:6px}
.neighbors figcaption{font-size:.76rem}
.neighbors .query{padding-right:.8rem;border-right:2px solid var(--ink)}
.neighbors .same img{outline:3px solid rgb(var(--right));outline-offset:1px}
.neighbors .same b{color:rgb(var(--right))}
.matrix{width:auto;font-size:.78rem;border-collapse:separate;border-spacing:1px}
.matrix th,.matrix td{border:0;padding:0 .3rem;white-space:nowrap;font-weight:400;
vertical-align:middle}
.matrix td{text-align:center;min-width:1.75rem;height:1.6rem;background:var(--ground)}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;
padding:.3rem 0;color:var(--ink);vertical-align:bottom}
.matrix thead th:first-child{writing-mode:horizontal-tb;transform:none;color:var(--soft);
padding-right:.6rem}
.matrix tbody th{text-align:right;padding-right:.6rem}
.matrix td.rest,.matrix th.rest{background:none;color:var(--soft)}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:0 2.5rem}
footer{border-top:1px solid var(--line);margin-top:3rem;padding-top:1rem;padding-bottom:3rem}
"""
    + _DEPTHS
    + """
@media print{
@page{margin:14mm}
html{font-size:12px}header,main,footer{max-width:none;padding:0}header{padding-top:0}
nav{display:none}section{margin:1.4rem 0}article{break-before:page;border:0;margin:0;padding:0}
h2,h3{break-after:avoid}
figure,tr,.figures,.missing,.neighbors{break-inside:avoid}
.wide{overflow:visible}.plot,.neighbors{min-width:0}
.tiles{grid-template-columns:repeat(6,1fr)}
.pairs{grid-template-columns:1fr 1fr}
.matrix{font-size:.7rem}.matrix td{min-width:0;height:auto;padding:.1rem}
.matrix td,.bar *,.figures div,.neighbors .same img{print-color-adjust:exact;
-webkit-print-color-adjust:exact}
a{color:inherit}}
"""
)
