"""The published evaluation protocols: what is asked (`protocols`), how answers are judged (`scoring`),
the lm-eval task files (`*.yaml`) that give both a version and bounds, and the bridge to lm-eval (`harness`)."""
