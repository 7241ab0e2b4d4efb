"""How well networks generalise, and whether one does better than another: measures of a network, statistics of arms.

Plain functions of networks, images and numbers; what makes runs and reports of them is `softgate.evaluation`.
"""
