"""Sweeps on a batch cluster: submit them to Slurm, watch them, send what failed again, and see them in wandb.

    config      settings of the commands; conf/cluster/*.yaml are the kinds of job
    submission  what was submitted, on disk: runs/<name>/submissions/<number>/
    slurm       the five Slurm commands that are called, each failure one line
    script      the text of the batch scripts
    worker      what a job runs: `python -m ridgescope.cluster.worker SUBMISSION TASK PART`
    status      from files, queue and accounting to the state of each cell
    submit      the whole way from a sweep to its jobs

A cell's truth is in its folder (done.json, failed.json); Slurm is asked only about what is under way.
"""
