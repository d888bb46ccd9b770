"""Logistic regression over all hospitals: which covariates go with the outcome, and how strongly?"""

import flame
from flame.methods.logistic import Logistic
from flame.methods.run import run
from flame.methods.standardise import Standardised

with flame.connect() as federation:
    chosen = federation.parameters
    model = Logistic(chosen["outcome"], chosen["covariates"], levels=chosen.get("levels"))
    method = Standardised(model) if chosen.get("standardise") else model

    result = run(method, federation)  # each hospital answers with sums over its patients; no row leaves it

    if federation.is_aggregator:
        federation.submit(result)
