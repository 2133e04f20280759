"""Compensation: correction of the weights that stay by least squares, with no training.

Pruning zeroes columns P of o_proj and down_proj. What they gave can be predicted, in part, from
the columns S that stay, because inputs are correlated; the prediction is folded into the weights.
With x the input, H = E[x x^T], mu = E[x] and lambda = ridge * mean(diag H):

``none``           W_S as it is
``bias``           b += W_P mu_P: the mean of what is gone (FLAP, arXiv 2312.11983)
``least-squares``  W_S += W_P H_PS (H_SS + lambda I)^-1, anchored at the original weights
``obs``            the same, with groups chosen by structured OBS (OSSCAR, arXiv 2403.12983;
                   SlimGPT, 2412.18110) instead of by the plan's scores; as many of them

Where one does not lower the error on windows it was not fitted on, the next simpler one is fitted.
Behind both regressions the rows before a matrix are fitted too (kept_rows), and of a mixture
the down_projs of all experts together by ``least-squares`` (expert_fit). One file a subject:
moments, closed forms, OBS selection, versions of a matrix and their fitting, errors on held-out
windows, streams, engine; then checks of what is asked, and the realised plan.
"""
