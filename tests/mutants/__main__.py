"""Do the tests hold the core? `python tests/mutants` breaks it in one place at a time and runs the tests that should notice

Each fault stands in `table.py`. It is made in a copy of the package, and at least one of its tests has to fail;
without a fault all of them have to pass. The command fails where a fault goes unnoticed."""
import os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from fastcore.script import call_parse
from table import mutants, root

def _node(o):
    "'served::test_x' → the file's whole name, and the test"
    file,*test = o.split('::')
    return '::'.join([str(root/'tests'/f'test_{file}.py'), *test])

def _pytest(folder, tests, limit, *args):
    "pytest's exit status and output, on the package in `folder`; None: it was still running"
    cmd = [sys.executable, '-m', 'pytest', '-q', '-x', '--no-header', '-p', 'no:cacheprovider',
           '--rootdir', root, '-c', root/'pyproject.toml', *(args or ('-n0',)), *map(_node, tests)]
    env = os.environ|dict(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1', MPLBACKEND='Agg')
    try: res = subprocess.run([*map(str, cmd)], cwd=folder, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired: return None,''
    return res.returncode,res.stdout+res.stderr

@contextmanager
def _copy():
    "A folder with the package in it"
    with tempfile.TemporaryDirectory(prefix='mutant') as folder:
        shutil.copytree(root/'proxy_attention', Path(folder)/'proxy_attention', ignore=shutil.ignore_patterns('__pycache__'))
        yield Path(folder)

def tried(m, limit):
    "Which test noticed the fault; None: none"
    with _copy() as folder:
        file = folder/'proxy_attention'/m.file
        file.write_text(m.broken(file.read_text(encoding='utf-8')), encoding='utf-8')
        code,out = _pytest(folder, m.tests, limit)
    if code is None: return f'the tests did not end within {limit} seconds'
    if code==0: return None
    failed = [l for l in out.splitlines() if l.startswith('FAILED')]
    if code!=1 or not failed: raise SystemExit(f'The tests of "{m.what}" could not be run:\n{out[-2000:]}')
    return failed[0].partition(' - ')[0].rpartition('/')[2]

@call_parse
def main(only:str='', # Only faults whose words have one of these texts in them, separated by semicolons
         limit:int=600, # Seconds that the tests of one fault may take
         jobs:int=2 # So many at once
):
    "Break the core in one place at a time, and see whether the tests notice"
    chosen,began = [m for m in mutants if any(o in m.what for o in only.split(';'))],time.time()
    with _copy() as folder: code,out = _pytest(folder, sorted({o for m in chosen for o in m.tests}), 3600, '-n', jobs)
    if code: raise SystemExit(f'Without a fault, too, a test fails:\n{out[-3000:]}')
    print(f'Without a fault, all tests pass ({time.time()-began:.0f} s).', flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        found = []
        for m,o in zip(chosen, pool.map(lambda m: tried(m, limit), chosen)):
            print(f'{"caught" if o else "MISSED"}  {m.what:66}  {o or ""}', flush=True)
            found.append(o)
    n = sum(o is not None for o in found)
    print(f'\n{n} of {len(chosen)} faults are noticed ({time.time()-began:.0f} s).')
    raise SystemExit(n<len(chosen))
