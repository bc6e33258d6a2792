import importlib, os, signal
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
import pytest

def pytest_pycollect_makeitem(collector, name, obj):
    "fastcore's `test_eq` and friends, imported with fastai, are no tests of ours"
    if callable(obj) and obj.__module__!=collector.module.__name__: return []

def pytest_configure(config):
    config.addinivalue_line('markers', 'limit(seconds): longer than the minute that a test may take')
    hands_out = getattr(config.option, 'numprocesses', None) and not hasattr(config, 'workerinput')
    if not hands_out: config.pluginmanager.register(importlib.import_module('shared_fixtures'))

def pytest_collection_modifyitems(items):
    "Notebooks take longest: they come first, so that two workers end together"
    items.sort(key=lambda o: o.path.stem!='test_notebooks')

@pytest.fixture(autouse=True)
def time_limit(request):
    "The failure to fear is a hang: every test ends within a minute, or as long as its mark `limit` says"
    mark = request.node.get_closest_marker('limit')
    seconds = mark.args[0] if mark else 60
    def ring(*_): raise TimeoutError(f'This test ran for more than {seconds} s: something hangs.')
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
