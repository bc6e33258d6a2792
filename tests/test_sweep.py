"Sweeps that are shared, killed and gone on with; places run once, failures kept, wrong words refused"
import json, multiprocessing, os, signal, sys, time
import optuna, pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.cli import CliError, proxy_sweep
from proxy_attention.experiment.runs import finished, run_state
from proxy_attention.experiment.sweep import Sweep, folder_run, grid_points, read_space, read_sweep, samplers

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.limit(170)]
ctx = multiprocessing.get_context('fork')

def quick(folder, a=0., b='x'):
    "Writes down that it ran"
    with open(folder/'ran', 'a') as f: f.write(f'{os.getpid()} {a} {b}\n')
    return dict(accuracy=1-(a-.3)**2, valid_loss=(a-.3)**2)

def slow(folder, a, b='x'):
    time.sleep(.05)
    return quick(folder, a, b)

def ran(folder): return {o.parent.name:o.read_text().splitlines() for o in sorted(folder.glob('trial_*/ran'))}
def started(f, *args):
    p = ctx.Process(target=f, args=args)
    p.start()
    return p
def until(f):
    while not f(): time.sleep(.005)

grid = dict(a=[.1,.2,.3,.4,.5], b=['x','y','z'])
tiny = dict(arch='test_resnet', pretrained=False, size=16, workers=0, steps='1,p,1', share=.5, bs=32)

@pytest.fixture
def photos(tmp_path): return digits(tmp_path/'digits', n=60)/'train'

@pytest.mark.parametrize('url', [None, 'sqlite:///{}/db'])
def test_three_processes_run_every_point_once(tmp_path, url):
    url = url and url.format(tmp_path)
    space = grid if url is None else dict(a=[.1,.2,.3], b=['x','y']) # a database is slower
    ps = [started(lambda: Sweep(slow, space, tmp_path/'s', 'grid', storage=url).go(quiet=True)) for _ in range(3 if url is None else 2)]
    for p in ps: p.join()
    assert [p.exitcode for p in ps]==[0]*len(ps)
    df = read_sweep(tmp_path/'s', url).df
    assert set(df.state)=={'complete'} and df.trial.tolist()==list(range(len(df)))
    assert ({(o.a, o.b) for o in df.itertuples()}=={(a,b) for a in space['a'] for b in space['b']}
        and len(df)==len(space['a'])*len(space['b']))
    lines = ran(tmp_path/'s')
    assert all(len(o)==1 for o in lines.values()) and len({o[0].split()[0] for o in lines.values()})>1

def test_number_of_trials_is_exact_and_their_parameters_do_not_depend_on_who_runs_them(tmp_path):
    space = dict(a=(0.,1.), b=['x','y'])
    ps = [started(lambda: Sweep(slow, space, tmp_path/'three', 'random').go(11, quiet=True)) for _ in range(3)]
    for p in ps: p.join()
    Sweep(quick, space, tmp_path/'one', 'random').go(4, quiet=True)
    Sweep(quick, space, tmp_path/'one', 'random').go(11, quiet=True)
    a,b = (read_sweep(tmp_path/o).df for o in ('three','one'))
    assert len(a)==11 and a[['a','b']].equals(b[['a','b']]) and a.a.nunique()==11
    assert not Sweep(quick, space, tmp_path/'two', 'random', seed=1).go(11, quiet=True).df.a.equals(b.a)
    assert len(Sweep(quick, space, tmp_path/'one', 'random').go(5, quiet=True).df)==11 # fewer: nothing to do

@pytest.mark.parametrize('sampler', [
    'grid',
    optuna.samplers.RandomSampler()], ids=['grid','own']) # the second would draw others, were they drawn again
def test_kill_9_loses_at_most_the_running_trial(tmp_path, sampler):
    space = grid if sampler=='grid' else dict(a=(0.,1.), b=['x','y'])
    def hangs(folder, a, b):
        if folder.name=='trial_0004' and not (folder/'hung').exists():
            (folder/'hung').write_text(f'{a} {b}')
            time.sleep(60)
        return quick(folder, a, b)
    p = started(lambda: Sweep(hangs, space, tmp_path/'s', sampler).go(8, quiet=True))
    until(lambda: (tmp_path/'s'/'trial_0004'/'hung').exists())
    assert Sweep(hangs, space, tmp_path/'s', sampler)._done('running')==1
    assert Sweep(hangs, space, tmp_path/'s', sampler).go(5, quiet=True)._done('complete')==4 # it is alive: its trial is left to it
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    sweep = Sweep(hangs, space, tmp_path/'s', sampler).go(8, quiet=True)
    df = sweep.df
    assert df.trial.tolist()==list(range(8)) and set(df.state)=={'complete'}
    assert f"{df.a[4]} {df.b[4]}"==(tmp_path/'s'/'trial_0004'/'hung').read_text()
    assert all(len(o)==1 for o in ran(tmp_path/'s').values())
    assert [t.state.name for t in sweep.study.trials].count('FAIL')==1 and not list((tmp_path/'s'/'.working').glob('[!.]*'))

def test_a_trial_of_another_machine_is_left_alone(tmp_path):
    sweep = Sweep(quick, grid, tmp_path/'s', 'grid')
    sweep.study.enqueue_trial(sweep.points[0], user_attrs=dict(place=0, host='elsewhere', worker='w', folder='f'))
    sweep.study.ask()
    assert len(sweep.go(quiet=True).df)==15 and sweep._done('running')==1 and sweep._done('complete')==14
    sweep._queue(0) # as another process may have, before it knew
    assert len(sweep.go(quiet=True).df)==15 and sweep._done('running')==1 and not (tmp_path/'s'/'trial_0000').exists()
    assert sweep.again('running')==1 and sweep.go(quiet=True)._done('complete')==15
    with pytest.raises(ValueError, match="did you mean 'failed'"): sweep.again('fail')

def test_two_that_queue_the_same_place(tmp_path):
    "What a database without a common folder lets happen"
    sweep = Sweep(quick, grid, tmp_path/'s', 'grid')
    for place in (0,0,1,0,40): sweep._queue(place) if place<15 else sweep.study.enqueue_trial({}, user_attrs=dict(place=place))
    sweep.study.enqueue_trial(dict(a=.1, b='x')) # by hand, and of no place
    assert len(sweep.go(quiet=True).df)==15 and all(len(o)==1 for o in ran(tmp_path/'s').values())

def test_ctrl_c_frees_the_place(tmp_path):
    def stops(folder, a, b):
        if folder.name=='trial_0002' and not (folder/'was').exists():
            (folder/'was').touch()
            raise KeyboardInterrupt
        return quick(folder, a, b)
    with pytest.raises(KeyboardInterrupt, match='goes on'): Sweep(stops, grid, tmp_path/'s', 'grid').go(quiet=True)
    assert read_sweep(tmp_path/'s').df.trial.tolist()==[0,1]
    assert len(Sweep(stops, grid, tmp_path/'s', 'grid').go(quiet=True).df)==15

def test_stopped_between_two_trials(tmp_path, monkeypatch):
    "The process said goodbye, and its trial was begun and never run"
    def stops(self, trial): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Sweep, '_try', stops)
        Sweep(quick, grid, tmp_path/'s', 'grid').go(quiet=True)
    assert read_sweep(tmp_path/'s')._done('running')==1 and Sweep(quick, grid, tmp_path/'s', 'grid').go(quiet=True)._done('complete')==15

def test_failed_trials_are_kept_with_their_sentence(tmp_path):
    broken = [True]
    def fails(folder, a, b):
        if b=='y' and broken: raise ValueError(f'{b} cannot work\nand more')
        return quick(folder, float('nan') if b=='z' and a==.5 and broken else a, b)
    sweep = Sweep(fails, grid, tmp_path/'s', 'grid').go(quiet=True)
    df = sweep.df
    assert len(df)==15 and (df.state=='failed').sum()==6 and (df.problem=='ValueError: y cannot work').sum()==5
    assert df[(df.a==.5) & (df.b=='z')].problem.str.contains('accuracy is nan').all()
    assert (sweep.table().state.tolist()==['complete']*9+['failed']*6 and sweep.best.a==.3
        and sweep.table(3).accuracy.is_monotonic_decreasing)
    broken.clear()
    assert sweep.again()==6 and len(sweep.go(quiet=True).df)==15 and sweep._done('complete')==15

def test_three_of_a_kind_at_the_beginning_stop_it(tmp_path):
    def fails(folder, a, b): raise OSError('The disk is full')
    sweep = Sweep(fails, grid, tmp_path/'s', 'grid')
    with pytest.raises(ValueError, match='failed in the same way .*The disk is full') as e: sweep.go(quiet=True)
    assert isinstance(e.value.__cause__, OSError) and sweep._done('failed')==3
    n = [0]
    def twice(folder, a, b):
        n[0] += 1
        if n[0] in (1,2): raise OSError('full')
        if n[0]>4: raise OSError('full')
        return quick(folder, a, b)
    assert Sweep(twice, grid, tmp_path/'t', 'grid').go(quiet=True)._done('failed')==13 # not at the beginning
    with pytest.raises(ValueError, match='nothing to plot'): sweep.plot()
    with pytest.raises(ValueError, match='No trial is complete'): sweep.best
    assert 'failed' in repr(sweep) and sweep.summary['best'] is None

@pytest.mark.parametrize('said,words', [
    (dict(loss=1.), "returned no 'accuracy'"),
    (dict(acuracy=1.), "did you mean 'acuracy'"),
    (dict(accuracy='high'), 'dictionary of numbers'),
    (None, 'dictionary of numbers'),
    ({}, 'It returned: nothing')])
def test_a_run_that_says_something_else_stops_the_sweep(tmp_path, said, words):
    sweep = Sweep(lambda folder, a: said, dict(a=[1,2]), tmp_path/'s', 'grid')
    with pytest.raises(TypeError, match=words): sweep.go(quiet=True)
    assert not sweep._done('failed','complete','running')

def test_a_number_is_the_metric(tmp_path):
    assert Sweep(lambda folder, a: torch.tensor(a), dict(a=[1,2]), tmp_path/'s', 'grid', metric='valid_loss').go(quiet=True).best.a==1

@pytest.mark.parametrize('kw,words', [
    (dict(space=dict(c=[1,2])), "no parameter 'c'"), (dict(space=dict(folder=[1,2])), 'has that already'),
    (dict(space=dict(a=[])), 'nothing to try'), (dict(space=dict(a=[1,1])), 'twice'),
    (dict(space=dict(a=.1)), 'Nothing varies'), (dict(space={}), 'Nothing varies'),
    (dict(space=None), 'should be a dictionary'),
    (dict(space=dict(a=(2,1))), 'from a smaller'), (dict(space=dict(a=(0,1,'log'))), 'begin above 0'),
    (dict(space=dict(a=(1,2,3))), 'should be \\(lo, hi\\)'),
    (dict(space=dict(a=('x','y'))), 'choices are a list'), (dict(space=dict(a=(0.,float('nan')))), 'from one number'),
    (dict(space=dict(a=[print,1])), 'Give it a name'),
    (dict(space='a=1..x'), 'from one number'), (dict(space='a'), 'should say a name'), (dict(space='a=1..2 a=3'), 'twice'),
    (dict(sampler='grit'), "did you mean 'grid'"), (dict(space=dict(a=(0.,1.)), sampler='grid'), 'a is a range \\(0 to 1\\)'),
    (dict(sampler=lambda space: 3), 'should be an Optuna sampler'), (dict(sampler=lambda space: [dict(a=1)]), 'should say a, b'),
    (dict(pruner='median'), 'an argument `trial`'),
    (dict(seed=-1), 'seed=-1'), (dict(metric=3), 'metric=3'), (dict(run=3), 'should be a function'),
    (dict(storage='nonsense'), 'cannot be opened'),
    (dict(space=dict(a=list(range(400)), b=[str(i) for i in range(400)])), '160000 points')])
def test_wrong_words_are_refused_before_anything_is_written(tmp_path, kw, words):
    with pytest.raises((ValueError,TypeError), match=words): Sweep(**dict(run=quick, space=grid, folder=tmp_path/'s', sampler='grid')|kw)
    assert 'storage' in kw or not (tmp_path/'s').exists()

def test_go_says_how_many(tmp_path):
    sweep = Sweep(quick, dict(a=(0.,1.)), tmp_path/'s')
    for n,words in ((None, 'How many'), (0, 'n=0'), (2.5, 'n=2.5'), (True, 'n=True')):
        with pytest.raises(ValueError, match=words): sweep.go(n)
    with pytest.raises(ValueError, match='to be looked at'): read_sweep(tmp_path/'s').go(3)
    with pytest.raises(FileNotFoundError, match='no sweep in'): read_sweep(tmp_path/'none')
    assert not len(sweep.df) and 'nothing run yet' in repr(sweep) and not (tmp_path/'none').exists()

@pytest.mark.parametrize('kw,words', [
    (dict(space=grid|dict(b=['x','y'])), 'Space, b: x, y, z there, x, y here'),
    (dict(space=grid|dict(c=.5)), 'C: absent there, 0.5 here'),
    (dict(metric='valid_loss'), 'The metric: accuracy there'),
    (dict(seed=1), 'the seed puts in order'),
    (dict(sampler='random'), 'puts in order'),
    (dict(run=partial(quick, c=2)), 'C: absent there, 2 here')])
def test_another_sweep_is_refused(tmp_path, kw, words):
    run = lambda folder, a, b, c=0: quick(folder, a, b)
    Sweep(run, grid, tmp_path/'s', 'grid').go(1, quiet=True)
    if 'run' in kw: kw = dict(run=partial(run, c=2))
    with pytest.raises(ValueError, match=words): Sweep(**dict(run=run, space=grid, folder=tmp_path/'s', sampler='grid')|kw)

def test_a_journal_that_was_cut_off_or_is_none(tmp_path):
    Sweep(quick, grid, tmp_path/'s', 'grid').go(3, quiet=True)
    journal = tmp_path/'s'/'journal.log'
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-9]) # the last line: how trial 2 ended
    df = Sweep(quick, grid, tmp_path/'s', 'grid').go(5, quiet=True).df
    assert df.trial.tolist()==list(range(5)) and set(df.state)=={'complete'}
    journal.write_bytes(b'nonsense\n'+whole)
    with pytest.raises(ValueError, match='no journal of a sweep'): Sweep(quick, grid, tmp_path/'s', 'grid')
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='cannot be used'): Sweep(quick, grid, tmp_path/'file', 'grid')
    Path(tmp_path/'o').mkdir()
    optuna.create_study(study_name='o', storage=f'sqlite:///{tmp_path}/db').enqueue_trial({})
    with pytest.raises(ValueError, match='was not made by a Sweep'):
        Sweep(quick, grid, tmp_path/'o', 'grid', storage=f'sqlite:///{tmp_path}/db')

def test_pruner_only_if_asked(tmp_path):
    def run(folder, a, trial):
        for i in range(4):
            trial.report(a, i)
            if trial.should_prune(): raise optuna.TrialPruned(f'after {i}')
        return a
    space = dict(a=[float(o) for o in range(12)])
    assert Sweep(run, space, tmp_path/'no', 'grid').go(quiet=True)._done('complete')==12
    sweep = Sweep(run, space, tmp_path/'yes', 'grid', pruner='median').go(quiet=True)
    assert (sweep._done('pruned')>0 and sweep._done('complete','pruned')==12 and sweep.best.a==11
        and sweep.df.problem.dropna().str.startswith('after').all())

def test_own_samplers_and_distributions(tmp_path):
    space = dict(a=optuna.distributions.FloatDistribution(0, 1, step=.25), b=L('x','y'))
    df = Sweep(quick, space, tmp_path/'own', optuna.samplers.RandomSampler(seed=0)).go(4, quiet=True).df
    assert set(df.a)<={0,.25,.5,.75,1} and len(df)==4
    class Whole(optuna.samplers.RandomSampler):
        "Draws as a trial begins, all parameters at once"
        def infer_relative_search_space(self, study, trial): return dict(a=optuna.distributions.FloatDistribution(0, 1))
        def sample_relative(self, study, trial, space): return dict(a=self.reseed) if space else {}
    def whole(space, seed):
        sampler = Whole(seed=seed)
        sampler.reseed = seed/2**32
        return sampler
    df = Sweep(quick, dict(a=(0.,1.)), tmp_path/'whole', whole).go(3, quiet=True).df
    assert df.a.tolist()==[int(np.random.SeedSequence([0,i]).generate_state(1)[0])/2**32 for i in range(3)]
    points = [dict(a=.25, b='y'), dict(a=.5, b='x')]
    assert Sweep(quick, space, tmp_path/'points', lambda: points).go(quiet=True).df[['a','b']].to_dict('records')==points
    assert read_space('a=1..3 b=1..3:log c=no d=x')==dict(a=(1,3), b=(1,3,'log'), c=False, d='x')
    def typed(folder, a:float, n:int): return a
    sweep = Sweep(typed, dict(a=(0,1), n=(1,4)), tmp_path/'typed').go(4, quiet=True)
    assert sweep.df.a.map(lambda o: o not in (0,1)).all() and sweep.df.n.dtype=='int64'
    assert all(set(o)=={'a'} for o in grid_points(dict(a=optuna.distributions.CategoricalDistribution([1,2])), 0))

def test_nothing_of_ours_is_left_behind(tmp_path):
    rc,level = dict(plt.rcParams), optuna.logging.get_verbosity()
    sweep = Sweep(quick, dict(a=(0.,1.), b=['x','y']), tmp_path/'s').go(6, quiet=True)
    assert len(sweep.plot('a').figure.axes)==2 and len(sweep.plot_slices())==2 and len(sweep.plot_slices('b'))==1
    assert dict(plt.rcParams)==rc and optuna.logging.get_verbosity()==level
    assert '<table' in sweep._repr_html_() and sweep.best_params.keys()=={'a','b'}

def test_a_folder_is_checked_before_the_first_trial(photos, tmp_path, fingerprint):
    before = fingerprint(photos.parent)
    run = folder_run(photos, **tiny)
    for kw,words in (
            (dict(space='aera=.1..3'), "did you mean 'area'"),
            (dict(space='fill=swap,zerro'), "did you mean 'zero'"),
            (dict(space='area=-1..0.2'), 'area=-1'),
            (dict(space='size=16,x'), 'should be a whole number'),
            (dict(space='area=.1,.2', metric='acuracy'), "did you mean 'accuracy'"),
            (dict(space='area=.1,.2', folder=photos/'sweep'), 'nothing is ever written there'),
            (dict(space='folds=2,3', pruner='median'), 'folds are several')):
        with pytest.raises((ValueError,TypeError), match=words): Sweep(run, **dict(folder=tmp_path/'s')|kw)
    with pytest.raises(ValueError, match='nothing to train on'): Sweep(folder_run(), 'area=.1,.2', tmp_path/'s')
    with pytest.raises(TypeError, match="did you mean 'arch'"): folder_run(photos, ach='resnet18')
    assert not (tmp_path/'s').exists() and fingerprint(photos.parent)==before

def test_a_training_is_stopped_early_if_asked(photos, tmp_path):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial): return trial.user_attrs['place']==1
    sweep = Sweep(folder_run(photos, **tiny), 'area=.1,.3', tmp_path/'s', 'grid', metric='valid_loss', pruner=Second()).go(quiet=True)
    df = sweep.df
    assert df.state.tolist()==['complete','pruned'] and df.problem[1].endswith('after 1 epochs')
    run = tmp_path/'s'/df.run[0]
    assert (list(sweep.study.trials[0].intermediate_values.values())==pytest.approx(pd.read_csv(run/'history.csv').valid_loss)
        and list(sweep.study.trials[1].intermediate_values)==[1])
    assert finished(run) and run_state(tmp_path/'s'/df.run[1])=='stopped'

def test_a_round_on_the_command_line_killed_and_gone_on_with(photos, tmp_path, capsys, monkeypatch, fingerprint):
    "The trial that was cut off after its first epoch goes on from there; the same command ends with the table"
    import proxy_attention.experiment.train as t
    before,usual = fingerprint(photos.parent), t.arch_learner
    class Killed(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: os.kill(os.getpid(), signal.SIGKILL)
    args = ['proxy-sweep', str(photos), '--space', 'area=0.1,0.3 fill=swap', '--sampler', 'grid', '--metric', 'valid_loss',
        '--out', str(tmp_path/'s'), '--pretrained', 'no',
        *f"--arch test_resnet --size 16 --workers 0 --steps 1,p,1 --share .5".split()]
    def cut():
        t.arch_learner = lambda *a: usual(*a).add_cb(Killed())
        proxy_sweep(str(photos), space='area=0.1,0.3 fill=swap', sampler='grid', metric='valid_loss', out=str(tmp_path/'s'),
            quiet=True, **{k:v for k,v in tiny.items() if k!='bs'})
    p = started(cut)
    p.join()
    assert p.exitcode==-signal.SIGKILL and [len(list(o.glob('train_*'))) for o in (tmp_path/'s').glob('trial_*')]==[1]
    monkeypatch.setattr(sys, 'argv', args)
    # as the installed script does it
    exec(compile('proxy_sweep()', 'script', 'exec'), dict(__name__='__main__', __file__='script', proxy_sweep=proxy_sweep))
    out = capsys.readouterr().out
    assert '2 complete' in out and 'parallel.png' in out and Image.open(tmp_path/'s'/'slices.png').width>300
    df = read_sweep(tmp_path/'s').df
    assert sorted(df.area)==[.1,.3] and (df.done==2).all() and (df.fill=='swap').all()
    assert [len(list(o.glob('train_*'))) for o in sorted((tmp_path/'s').glob('trial_*'))]==[1,1]
    assert fingerprint(photos.parent)==before
    proxy_sweep(str(photos), space='area=0.1,0.3 fill=swap', sampler='grid', metric='valid_loss', out=str(tmp_path/'s'),
        json=True, **{k:v for k,v in tiny.items() if k!='bs'})
    told = json.loads(capsys.readouterr().out)
    assert told['complete']==2 and told['best']['valid_loss']==df.valid_loss.min()
    with pytest.raises(CliError, match='Say what varies'): proxy_sweep(str(photos))
