"What the commands cost before they do anything: `python benchmarks/startup.py` writes `benchmarks/startup.csv`"
import os, resource, statistics, subprocess, sys, tempfile
from pathlib import Path
import pandas as pd
from fastcore.script import call_parse

bin = Path(sys.executable).parent
lines = {
    'python -c pass':[sys.executable,'-c','pass'],
    'import fastai.vision.all':[sys.executable,'-c','import fastai.vision.all'],
    **{o:[bin/o.split()[0], *o.split()[1:]] for o in (
        'proxy-train --help', 'proxy-sweep --help', 'proxy-compare --version', 'proxy-train --epoch 3', 'proxy-train', 'proxy-runs .')}}

def cpu(line, folder):
    "Seconds of processor time of a command from a cold start"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    res = subprocess.run(line, capture_output=True, cwd=folder, env=os.environ|dict(PYTHONWARNINGS='ignore'))
    if res.returncode not in (0,2): raise RuntimeError(f'{line} ended with {res.returncode}: {res.stderr.decode()}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime+after.ru_stime-before.ru_utime-before.ru_stime

@call_parse
def main(
    n:int=5, # How often each is measured, in turn
    out:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Processor time of each command, against an empty program and against the import of fastai"
    seconds = {k:[] for k in lines}
    with tempfile.TemporaryDirectory() as folder:
        for k in [*lines, *[k for _ in range(n) for k in lines]]: seconds[k].append(cpu(lines[k], folder)) # the first fills caches
    mid = {k:statistics.median(v[1:]) for k,v in seconds.items()}
    df = pd.DataFrame(dict(seconds=mid)).rename_axis('command')
    df['of an empty program'] = df.seconds/mid['python -c pass']
    df['of the import of fastai'] = df.seconds/mid['import fastai.vision.all']
    df.round(3).to_csv(out)
    print(df.round(3).to_string())
