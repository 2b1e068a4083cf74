"""Judge a probe: label subsets, metrics, intervals, decisions, prevalence."""
