"""Any method of the catalogue: the parameter `method` names it, the others are its own (`flame methods show NAME`)."""

import flame
from flame.methods.named import method
from flame.methods.run import run

with flame.connect() as federation:
    chosen = dict(federation.parameters)
    result = run(method(chosen.pop("method"), chosen), federation)  # hospitals answer with sums; no row leaves them

    if federation.is_aggregator:
        federation.submit(result)
