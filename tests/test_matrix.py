"Each command: begun, stopped, killed, moved, twice at once, with other images, code or settings. It goes on, or refuses"
import json, random, shutil, time, warnings
from dataclasses import dataclass
from pathlib import Path
import pandas as pd, pytest, warm
from fastai.learner import Learner
from proxy_attention.core import ProxyWarning
from proxy_attention.data.digits import digits
from proxy_attention.experiment.checkpoint import read_checkpoint
from proxy_attention.experiment.compare import compare_folder
from proxy_attention.experiment.identity import weights_digest
from proxy_attention.experiment.runs import runs_table
from proxy_attention.experiment.sweep import sweep_folder
from proxy_attention.experiment.train import finished, resume_run, train_folder
from proxy_attention.interpret.use import explain_images
from proxy_attention.proxy.recipes import recipes
from proxy_attention.report.build import report_runs
import proxy_attention.experiment.sweep as sweep_module

pytestmark = pytest.mark.limit(170)
small = dict(arch='test_resnet', pretrained=False, size=32, bs=16, workers=0, augment='flips', epochs=3, lr=4e-3, seed=3)
quietly = lambda *o: None

def only(d, pattern='*'):
    "The folder of the run that is there; None: there is none that can be gone on with"
    return next((o.parent for o in sorted(d.glob(f'{pattern}/config.toml'))), None)

class Train:
    def begin(self, d, **kw): return train_folder(d/'photos', d/'runs', say=quietly, **small|dict(recipe='late')|kw)
    def go_on(self, d, **kw): return resume_run(only(d/'runs'), say=quietly, **kw)
    def numbers(self, d):
        run = only(d/'runs')
        assert finished(run)
        return pd.read_csv(run/'history.csv').to_csv(), weights_digest(read_checkpoint(run/'checkpoints'/'last.pth')['model'])

class Compare:
    def begin(self, d, arms='no proxy,late', seeds=2, **kw):
        return compare_folder(d/'photos', arms, seeds, out=d/'runs', say=quietly, **small|dict(epochs=2)|kw)
    def go_on(self, d, **kw): return compare_folder(resume=only(d/'runs'), say=quietly, **kw)
    def numbers(self, d):
        return pd.read_csv(only(d/'runs')/'comparison.csv')[['arm','seed','test','accuracy','loss','worst','steps']].to_csv()

class Sweep:
    def begin(self, d, space='lr=1e-3,4e-3', **kw):
        return sweep_folder(
            d/'photos', space, out=d/'sweep', sampler='grid', metric='valid_loss', say=quietly, **small|dict(recipe='late')|kw)
    go_on = begin
    def numbers(self, d): return self.begin(d).df.sort_values('lr')[['lr','state','valid_loss','accuracy']].to_csv(index=False)

commands = dict(train=Train(), compare=Compare(), sweep=Sweep())
each = pytest.mark.parametrize('name', commands)

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    d = tmp_path_factory.mktemp('project')
    shutil.move(digits(d/'digits', n=80)/'train', d/'photos')
    return d

@pytest.fixture
def mine(project, tmp_path): return Path(shutil.copytree(project/'photos', tmp_path/'mine'/'photos')).parent

@pytest.fixture(scope='module')
def done(project, tmp_path_factory):
    "Of each command a project in which it is done, and its numbers"
    res = {}
    for k,o in commands.items():
        d = Path(shutil.copytree(project/'photos', tmp_path_factory.mktemp('done')/k/'photos')).parent
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            o.begin(d)
        res[k] = d,o.numbers(d)
    return res

@pytest.fixture(autouse=True)
def no_words(monkeypatch):
    monkeypatch.setattr(sweep_module, '_beat', (1,4)) # seconds, so that a killed trial is not waited for a minute
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

class stopped:
    "A Ctrl-C at the n-th training batch"
    def __init__(self, monkeypatch, n): self.mp,self.left = monkeypatch,n
    def __enter__(self):
        usual = Learner.one_batch
        def one_batch(learn, i, b):
            self.left -= learn.training
            if not self.left: raise KeyboardInterrupt
            return usual(learn, i, b)
        self.mp.setattr(Learner, 'one_batch', one_batch)
    def __exit__(self, *args): self.mp.undo()

def stop(cmd, d, monkeypatch, n):
    with stopped(monkeypatch, n), pytest.raises(KeyboardInterrupt): cmd.begin(d)

@each
def test_fresh(name, done, mine):
    "The same once more is the same"
    commands[name].begin(mine)
    assert commands[name].numbers(mine)==done[name][1]

@each
@pytest.mark.parametrize('at', [2,9])
def test_stopped_and_gone_on_with(name, at, done, mine, monkeypatch):
    cmd = commands[name]
    stop(cmd, mine, monkeypatch, at)
    cmd.go_on(mine)
    assert cmd.numbers(mine)==done[name][1]

def begun(name, d):
    warnings.simplefilter('ignore')
    sweep_module._beat = 1,4
    commands[name].begin(d)

def gone_on(name, d):
    warnings.simplefilter('ignore')
    sweep_module._beat = 1,4
    commands[name].go_on(d)

@each
def test_killed_and_gone_on_with(name, done, mine, tmp_path):
    "Kill -9 at random moments, again and again, until it is done"
    cmd,rng = commands[name],random.Random(name)
    for i in range(4):
        there = name=='sweep' or only(mine/'runs') is not None
        with warm.begin(gone_on if there else begun, name, mine, out=tmp_path) as p:
            p.join(rng.uniform(1.5, 5)) # a process takes about two seconds to begin, another thirty to end
            if p.exitcode is not None: break
            p.kill()
            p.join()
    if name!='sweep' and only(mine/'runs') is None: cmd.begin(mine)
    else: cmd.go_on(mine)
    assert cmd.numbers(mine)==done[name][1]

@each
def test_two_processes(name, done, mine, monkeypatch, tmp_path):
    "They share the work, or the second is refused; each piece is done once"
    cmd = commands[name]
    stop(cmd, mine, monkeypatch, 2)
    outs = [tmp_path/'a',tmp_path/'b']
    for o in outs: o.mkdir()
    with warm.begin(gone_on, name, mine, out=outs[0]) as a, warm.begin(gone_on, name, mine, out=outs[1]) as b:
        for p in (a,b): p.join(150)
        ends = sorted(p.exitcode for p in (a,b))
    said = ''.join((o/'stderr').read_text() for o in outs)
    if name=='train': assert ends==[0,1] and 'Another process is training with the folder' in said
    else: assert ends==[0,0], said
    assert cmd.numbers(mine)==done[name][1]

@each
def test_moved(name, done, tmp_path, monkeypatch, project):
    "The project as a whole lies elsewhere, and one works from another directory"
    cmd,d = commands[name],Path(shutil.copytree(project/'photos', tmp_path/'old'/'photos')).parent
    stop(cmd, d, monkeypatch, 9)
    new = d.rename(tmp_path/'new')
    monkeypatch.chdir('/')
    cmd.go_on(new)
    assert cmd.numbers(new)==done[name][1]

def other_image(d):
    f = next((d/'photos').rglob('*.png'))
    f.write_bytes(f.read_bytes()+b'more')
def other_label(d):
    f = next((d/'photos'/'3').iterdir())
    f.rename(d/'photos'/'4'/f'moved_{f.name}')
def another_image(d):
    f = next((d/'photos').rglob('*.png'))
    shutil.copy(f, f.with_name('new.png'))

def files(d): return {o:o.read_bytes() for sub in ('runs','sweep') for o in sorted((d/sub).rglob('*')) if o.is_file() and o.suffix!='.db'
                      and not o.name.startswith('.') and 'study' not in o.name}

@each
@pytest.mark.parametrize('change', [other_image, other_label])
def test_other_images(name, change, mine, monkeypatch):
    cmd = commands[name]
    stop(cmd, mine, monkeypatch, 9)
    change(mine)
    before = files(mine)
    with pytest.raises(ValueError, match='(?i)images'): cmd.go_on(mine)
    assert files(mine)==before

@each
def test_one_more_image(name, done, mine, monkeypatch):
    "What has its split already goes on with that one; a sweep would draw another one, and is refused"
    cmd = commands[name]
    stop(cmd, mine, monkeypatch, 9)
    another_image(mine)
    if name=='sweep':
        with pytest.raises(ValueError, match='training images, number'): cmd.go_on(mine)
    else:
        cmd.go_on(mine)
        assert cmd.numbers(mine)==done[name][1]

@each
def test_other_code(name, mine, monkeypatch):
    "The recipe says something else than when it began"
    cmd = commands[name]
    stop(cmd, mine, monkeypatch, 9 if name=='train' else 16)
    monkeypatch.setitem(recipes['late'].settings, 'area', .33)
    with pytest.raises(ValueError, match='area'): cmd.go_on(mine)

@pytest.mark.parametrize('name,kw,says', [
    ('compare',dict(epochs=3),'epochs=2 there, 3 here'), ('compare',dict(lr=1e-3),'lr=0.004 there'),
    ('compare',dict(seeds=1),'seeds=1 would remove'),
    ('sweep',dict(epochs=2),'epochs: 3 there, 2 here'), ('sweep',dict(recipe='shortcut'),'recipe: late there'),
    ('sweep',dict(space='lr=1e-3,5e-3'),'(?i)space')])
def test_other_settings(name, kw, says, mine, done):
    shutil.copytree(done[name][0], mine, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=says): commands[name].go_on(mine, **kw)

def test_the_next_command_begins_another_run(mine):
    "Two trainings, or comparisons, in one folder of runs are two runs"
    for cmd in (commands['train'],commands['train']): cmd.begin(mine, epochs=2, recipe='none')
    assert len(list((mine/'runs').iterdir()))==2

def test_two_sweeps_in_one_database(mine, project, tmp_path):
    "`x/sweep` and `y/sweep` are two studies, and the images of one are not those of the other"
    other = Path(shutil.copytree(mine, tmp_path/'other'))
    another_image(other)
    url = f'sqlite:///{tmp_path/"studies.db"}'
    one,two = (commands['sweep'].begin(o, space=f'lr={lr}', storage=url, epochs=1, recipe='none')
               for o,lr in ((mine,'1e-3,2e-3'),(other,'3e-3,4e-3')))
    assert one.study.study_name!=two.study.study_name and set(one.df.lr)=={1e-3,2e-3} and set(two.df.lr)=={3e-3,4e-3}

# Commands that read

def read(d):
    "What the commands that read say of a project: numbers alone, no places"
    run = only(d/'runs')
    seen = explain_images(run, [d/'photos'/'3'], out=d/'seen', quiet=True, singles=False).table
    page = report_runs([run], d/'report.html', n=8, quiet=True).read_text(encoding='utf-8')
    row, = json.loads(runs_table(d/'runs', as_json=True))
    return seen.select_dtypes('number').round(6).to_csv(), 'images cannot be found' in page, row['state'], row['valid_loss']

def test_what_reads_says_the_same_of_a_project_that_was_moved(done, tmp_path, monkeypatch):
    old = Path(shutil.copytree(done['train'][0], tmp_path/'old'))
    before = read(old)
    new = old.rename(tmp_path/'new')
    for o in ('seen','report.html'): shutil.rmtree(new/o) if (new/o).is_dir() else (new/o).unlink()
    monkeypatch.chdir('/')
    assert read(new)==before and before[2]=='finished'

def test_what_reads_says_that_a_run_was_stopped(mine, monkeypatch):
    stop(commands['train'], mine, monkeypatch, 9)
    run = only(mine/'runs')
    row, = json.loads(runs_table(mine/'runs', as_json=True))
    assert row['state']=='stopped'
    with pytest.raises((ValueError,FileNotFoundError), match='model.safetensors|network'):
        explain_images(run, [mine/'photos'/'3'], out=mine/'seen', quiet=True)
    assert 'has no model yet' in report_runs([run], mine/'report.html', n=8, quiet=True).read_text(encoding='utf-8')
