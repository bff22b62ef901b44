"""Training: from a config file to a run directory.

settings.py       the fields of a config, config files, `--config.a.b=c`
examples.py       a conversation to token ids and which of them are trained on
sources.py        where conversations come from: JSON lines, generated tasks
packing.py        examples into rows;  feed.py  rows into batches, in an order that resumes
objective.py      the loss of a batch;  qat.py  parameters as the packed model holds them
optimizer.py      optax chain and schedules;  step.py  the compiled step
checkpoints.py    what a run resumes from;  export.py  what it ends with
run_directory.py  what a run leaves to look at;  speed.py  how fast it went
loop.py           all of it together
"""
