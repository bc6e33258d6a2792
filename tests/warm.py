"Real processes without the seconds of import: forked from a server that has imported other people's libraries and done nothing else"
import multiprocessing, os, runpy, shutil, signal, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path

ctx = multiprocessing.get_context('forkserver')
# none of our own modules: a notebook that imports too few has to fail
ctx.set_forkserver_preload([
    'fastai.vision.all','fastai.distributed','captum.attr','sklearn.datasets','torch.utils.tensorboard','nbdev.test'])
bin = Path(sys.executable).parent

def _in_child(f, args, kwargs, out, cwd, env):
    os.setsid() # so that it can be killed with all that it starts
    for fd,name in ((1,'stdout'),(2,'stderr')): os.dup2(os.open(out/name, os.O_WRONLY|os.O_CREAT|os.O_TRUNC), fd)
    signal.signal(signal.SIGINT, signal.default_int_handler) # a shell may have us started with Ctrl-C ignored
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True) # what it starts in turn begins as it would anywhere
    f(*args, **kwargs)

@contextmanager
def begin(f, *args, out, cwd='.', env={}, **kwargs):
    """A process that calls `f`, with `out/'stdout'` and `out/'stderr'` to read while it runs

    What still runs when the context ends is killed, with all that it started."""
    p = ctx.Process(target=_in_child, args=(f, args, kwargs, Path(out), os.path.abspath(cwd), os.environ|env))
    p.start()
    try: yield p
    finally:
        if p.exitcode is None: os.killpg(p.pid, signal.SIGKILL)
        p.join()

def run(f, *args, timeout=160, **kwargs):
    "What `subprocess.run` returns"
    out = Path(tempfile.mkdtemp())
    with begin(f, *args, out=out, **kwargs) as p:
        p.join(timeout)
        hangs = p.exitcode is None
    stdout,stderr = ((out/o).read_text(encoding='utf-8') for o in ('stdout','stderr'))
    shutil.rmtree(out)
    if hangs: raise subprocess.TimeoutExpired([f, *args], timeout, stdout, stderr)
    return subprocess.CompletedProcess([f, *args], p.exitcode, stdout, stderr)

def script(name, *args):
    "The console script, as the shell would run it"
    sys.argv[1:] = map(str, args)
    runpy.run_path(str(bin/name), run_name='__main__')
