"""Benchmarks beside their opponents: the same visits, the same servers, alternating rounds, one process tree.

    load.py         the bundled visits, published to topics made anew
    contestants.py  who competes, and how one run of each is started, waited for and ended
    worker.py       our own: a `url2vec worker`, timed by what it has checkpointed
    batches.py      our transport alone, reading and counting      (a program)
    stock_faust.py  Faust as it comes, one event at a time          (a program)
    plain_loop.py   confluent-kafka in a loop, the upper bound      (a program)
    report.py       medians, spreads and ratios, as rows and as a table
    embedding*.py   the vectors                                      (in one process)
    classifier*.py  the scores, and latent.py, tried beside them     (in one process, or through the running pipeline)

A program is run as `python -m`, is told everything by one JSON argument (`contestants.Order`) and leaves one JSON file
(`contestants.Result`). Nothing here is used by a worker.
"""
