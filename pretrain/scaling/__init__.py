"""From evaluation rows to the scaling plot: what more loops are worth, with confidence intervals.

    rows.py      of the rows of `eval/depth.jsonl`, keep the latest step and the metric that each task is judged by
    comparable.py   which rows belong to one curve, and what a curve is called
    curves.py    average the tasks of a group: value against effective depth, and where it gets worse with depth
    fit.py       value = alpha·log(D) + beta with bootstrap intervals; the ratio of two alphas
    gap.py       how much of the gap between its two baselines a looped model covers
    kinds.py     kinds of tasks, such as recall and reasoning, and the difference of their slopes
    floors.py    what chance and the best shortcut get
    law.py       the joint law of validation loss over parameters, loops and tokens, for each variant of variants.py
    isoplot.py   downstream value against validation loss over training steps
    analysis.py  runs all of the above on one set of rows
    tables.py    the results as text and fit.csv; figure.py: as PNG and SVG; page.py: as one self-contained HTML page
    dots.py      the figure of more curves than there are colours
    axes.py      the horizontal axes: effective depth, parameters, FLOPs; style.py: the look of all figures
    configurations.py   runs by configuration, what tools/compare.py prints; along.py: results along a swept setting
    spots.py     seeds as one spot, curves side by side; labels.py: names of points; colours.py: of curves

Nothing here imports torch, so a laptop without it can plot a cluster's runs.

Sources: Saunshi et al. 2025, "Reasoning with latent thoughts: on the power of looped transformers" (arXiv 2502.17416),
for the line, the gap and the isoplots; Schwethelm et al. 2026, "How much is one recurrence worth?" (arXiv 2604.21106),
for the joint law.
"""
