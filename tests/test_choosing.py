"Accuracy on validation images with a swapped part: as a metric of fits, runs, comparisons and sweeps"
import json, re, shutil
import optuna, pytest
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.vision.all import *
from proxy_attention.all import *
from fastcore.script import CliError
from proxy_attention.attribution.methods import Suspect
from proxy_attention.cli import proxy_compare
from proxy_attention.data.networks import network_file
from proxy_attention.experiment.arms import fit_plain
from proxy_attention.experiment.compare import compare_folder
from proxy_attention.experiment.config import Config, changed, from_toml, to_toml
from proxy_attention.experiment.statistics import Comparison
from proxy_attention.experiment.sweep import Sweep, folder_run
from proxy_attention.experiment.runs import read_runs
from proxy_attention.experiment.learner import config_learner
from proxy_attention.experiment.settings import begun_with, notes_on
from proxy_attention.experiment.inputs import images_of
from proxy_attention.experiment.train import last_of, resume_run, train_folder
from proxy_attention.interpret import choosing
from proxy_attention.interpret.choosing import SwappedSet, find_parts, swapped_accuracies
from test_checkpoint import Cut

pytestmark = [pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning'), pytest.mark.limit(120)]
tiny = dict(arch='test_resnet', pretrained=False, size=32, workers=0, bs=8, augment='none', lr=1e-2)

# The part

@pytest.mark.parametrize('call', [lambda learn: SwappedAccuracy(), swapped_accuracy, SwappedSet.of, lambda learn: find_parts(''),
                                  lambda learn: find_parts([])])
def test_the_part_has_to_be_given(trained, call):
    with pytest.raises(TypeError, match="part to swap is not given: name 'hot' if you suspect a small place, or 'rest' if"): call(trained)

def test_parts_by_name():
    assert find_parts('hot, rest')==find_parts(['hot','rest','hot'])==['hot','rest'] and find_parts('rest')==['rest']
    for wrong in ('rset','hot,rset'):
        with pytest.raises(ValueError, match="No part is called 'rset', did you mean 'rest'"): find_parts(wrong)
    with pytest.raises(ValueError, match="No part is called 'hot,rest'"): SwappedAccuracy('hot,rest')

def test_the_figures_of_its_docstring_are_those_of_the_benchmark():
    df = pd.read_csv(Path(__file__).parents[1]/'benchmarks'/'waterbed_cure.csv', dtype=dict(bed=str))
    worst = df[df.test!='valid'].groupby(['bed','arm','seed']).accuracy.min().rename('worst_of_all')
    df = df[df.test=='valid'].merge(worst.reset_index(), on=['bed','arm','seed'])
    df = df[~df.arm.str.endswith('half of otsu')].dropna(subset='rest_swapped') # later still; not measured from seed 18 on
    late = df.bed.isin(['1.0','natural','0.5']) | (df.arm.str.contains('otsu|two grids') & (df.bed=='0.95'))
    fits = df[(df.bed=='0.95')&(df.arm!='rehearsed')&~late&~df.arm.str.contains('128 px')]
    said = swapped_accuracy.__doc__
    assert f'Waterbed, {len(fits)} fits' in said
    for k in ('own_rest_swapped','rest_swapped','hot_swapped'):
        assert f"{fits[k].corr(fits.worst_of_all, method='spearman'):.2f}" in said
    later = [o.rest_swapped.corr(o.worst_of_all, method='spearman') for _,o in df[late].groupby('bed')]
    assert f'{min(later):.2f} to {max(later):.2f} with the\n    latter in four other sets' in said and len(later)==4 and late.sum()==75

# As a metric

def test_its_last_value_is_that_of_the_trained_network(few, quiet):
    learn = digits_learner(few)
    learn.metrics = [accuracy, SwappedAccuracy('rest'), SwappedAccuracy('hot', share=.3)]
    quiet(learn, 'fit', 3, 3e-3)
    assert learn.recorder.values[-1][3:]==[swapped_accuracy(learn, 'rest'), swapped_accuracy(learn, 'hot', share=.3)]

@pytest.mark.parametrize('suspect,times', [(True,1), (False,3)])
def test_the_images_of_a_suspect_are_made_once(few, quiet, trained, monkeypatch, suspect, times):
    made,usual = [],choosing.swapped
    monkeypatch.setattr(choosing, 'swapped', lambda *args: made.append(1) or usual(*args))
    learn = digits_learner(few)
    learn.metrics = [SwappedAccuracy('hot', suspect=Suspect(trained) if suspect else None)]
    quiet(learn, 'fit', 3, 1e-3)
    assert len(made)==times

def test_early_stopping_stops_by_it(few, quiet, trained):
    "While accuracy and loss of the validation images still improve, the accuracy without the patch no longer does"
    def fitted(*cbs):
        learn = digits_learner(few)
        learn.metrics = [accuracy, SwappedAccuracy('hot', suspect=Suspect(trained))]
        return quiet(learn, 'fit', 8, 3e-3, cbs=[*cbs]).recorder
    whole = pd.DataFrame(fitted().values, columns=['train_loss','valid_loss','accuracy','hot_swapped'])
    stale = whole.hot_swapped<=whole.hot_swapped.cummax().shift(fill_value=-1)
    at = int(stale.idxmax())
    assert stale[at] and at<7 and whole.valid_loss[at]<whole.valid_loss[:at].min(), 'the loss would not have stopped it'
    assert fitted(EarlyStoppingCallback('hot_swapped')).values==whole.values[:at+1].tolist()

# In runs

@pytest.fixture(scope='module')
def bed(tmp_path_factory): return digits(tmp_path_factory.mktemp('bed')/'digits', n=120)

@pytest.fixture(scope='module')
def finished_run(bed, tmp_path_factory):
    "A finished run, to be the suspect"
    return train_folder(bed, tmp_path_factory.mktemp('suspects'), recipe='none', epochs=2, say=noop, **tiny)

def same_runs(a, b, but=()):
    hist = [pd.read_csv(o/'history.csv') for o in (a,b)]
    nets = [load_run(o).model.state_dict() for o in (a,b)]
    return hist[0].drop(columns=[*but]).equals(hist[1]) and all(torch.equal(v, nets[1][k]) for k,v in nets[0].items())

def test_a_run_measures_what_it_is_asked(bed, tmp_path):
    "In the history, the log, the last row, and the table of runs; the training is the same as without"
    told = []
    run = train_folder(bed, tmp_path/'runs', epochs=2, recipe='shortcut', swapped='hot,rest', say=told.append, **tiny)
    plain = train_folder(bed, tmp_path/'runs', epochs=2, recipe='shortcut', say=noop, **tiny)
    columns = ['hot_swapped','rest_swapped']
    assert same_runs(run, plain, columns)
    last = last_of(run)
    assert [*last][-2:]==columns and all(0<=last[o]<=1 for o in columns)
    assert any(f"Validation images with the rest of another class: accuracy {last['rest_swapped']:.1%}"==o for o in told)
    assert any('swaps what each network attends to at that time' in o for o in told)
    assert 'swapped = "hot,rest"' in (run/'config.toml').read_text()
    ids = [json.loads((o/'identity.json').read_text()) for o in (run,plain)]
    assert ids[0]['config']['swapped']=='hot,rest' and ids[0]['digest']!=ids[1]['digest']
    table = read_runs(tmp_path/'runs').set_index('run')
    assert table.rest_swapped[run.name]==pytest.approx(last['rest_swapped'], abs=1e-6) and pd.isna(table.rest_swapped[plain.name])
    (run/'history.csv').rename(run/'kept.csv')
    assert np.allclose(read_runs(run, per_epoch=True).rest_swapped, pd.read_csv(run/'kept.csv').rest_swapped)

def cut_run(bed, out, *args, **kwargs):
    with pytest.raises(KeyboardInterrupt): train_folder(bed, out, say=noop, cbs=Cut(*args), **kwargs, **tiny)
    run, = out.iterdir()
    return run

@pytest.mark.parametrize('recipe,named', [('none',False), ('none',True), ('shortcut',True), ('rehearsed',False)])
def test_a_run_that_is_resumed_measures_the_same(bed, finished_run, tmp_path, recipe, named):
    "Also with the masks of a suspect"
    kwargs = dict(recipe=recipe, epochs=2, swapped='hot,rest') | (dict(suspect=str(finished_run)) if named else {})
    whole = train_folder(bed, tmp_path/'whole', say=noop, **kwargs, **tiny)
    run = cut_run(bed, tmp_path/'cut', 1, 1, **kwargs)
    resume_run(run, noop)
    assert same_runs(whole, run) and pd.read_csv(run/'history.csv')[['hot_swapped','rest_swapped']].nunique().max()==2

def test_the_masks_are_those_of_the_suspect(bed, finished_run, tmp_path):
    "The metric of a run is that of its network, on images of the frozen suspect"
    args = dict(recipe='none', epochs=2, seed=3, **tiny)
    run = train_folder(bed, tmp_path, swapped='hot,rest', suspect=str(finished_run), say=noop, **args)
    cfg = from_toml(run/'config.toml')
    learn = config_learner(cfg, images_of(cfg).load(run/'folds.csv'))
    learn.model.load_state_dict(load_run(run).model.state_dict())
    want = swapped_accuracies(learn, 'hot,rest', suspect=Suspect(load_run(finished_run)))
    last = last_of(run)
    assert {k:last[k] for k in want}==pytest.approx(want, abs=1e-6) and want!=swapped_accuracies(learn, 'hot,rest')

def test_another_suspect_is_refused(bed, finished_run, tmp_path):
    mine = Path(shutil.copytree(finished_run, tmp_path/'mine'))
    run = cut_run(bed, tmp_path/'runs', 1, 1, recipe='none', epochs=2, swapped='rest', suspect=str(mine))
    other = train_folder(bed, tmp_path/'other', recipe='none', epochs=1, seed=7, say=noop, **tiny)
    shutil.copy(other/network_file, mine/network_file)
    with pytest.raises(ValueError, match='The suspect of .* has changed since it started'): resume_run(run, noop)

def test_an_export_has_no_second_network(bed, finished_run, tmp_path):
    run = train_folder(bed, tmp_path, recipe='none', epochs=1, swapped='rest', suspect=str(finished_run), export=True, say=noop, **tiny)
    learn = load_learner(run/'model.pkl')
    assert [o.name for o in learn.metrics]==['accuracy']

# Refused

def test_what_a_run_cannot_measure(bed, finished_run, tmp_path):
    def train(**kwargs): train_folder(bed, tmp_path/'runs', epochs=1, say=noop, **kwargs, **tiny)
    with pytest.raises(ValueError, match="No part is called 'rset', did you mean 'rest'"): train(swapped='hot,rset')
    with pytest.raises(ValueError, match="cannot use a suspect: leave it out, choose a recipe, or use its heat to measure"):
        train(recipe='none', suspect=str(finished_run))
    assert not (tmp_path/'runs').exists()

def test_several_labels_are_refused_before_anything_is_trained(few, tmp_path):
    files = get_image_files(few/'train')
    pd.DataFrame(dict(file=[str(o) for o in files], label=[f'{o.parent.name} all' for o in files])).to_csv(tmp_path/'t.csv', index=False)
    class Never(Callback):
        def after_step(self): raise AssertionError('trained')
    args = dict(tiny, label_delim=' ', epochs=2, recipe='none', swapped='rest', say=noop)
    with pytest.raises(TypeError, match='Swapped accuracy needs one label per image, but this data has several labels'):
        train_folder(tmp_path/'t.csv', tmp_path/'runs', cbs=Never(), **args)
    assert not list((tmp_path/'runs').iterdir())
    with pytest.raises(TypeError, match='Swapped accuracy needs one label per image'):
        compare_folder(tmp_path/'t.csv', 'no proxy', 1, out=tmp_path/'runs', **{k:v for k,v in args.items() if k!='recipe'})
    assert not list((tmp_path/'runs').iterdir())

def test_a_configuration_keeps_what_it_measures_by(finished_run):
    cfg = changed(Config(), recipe='shortcut', suspect=str(finished_run), area=.2)
    told = []
    assert begun_with(cfg, told.append, recipe='none').proxy.suspect is None and 'suspect' in told[0]
    assert begun_with(cfg, noop, recipe='none', swapped='rest').proxy.suspect==str(finished_run)
    assert [len(notes_on(changed(Config(), swapped=o))) for o in ('rest','hot','hot,rest','none')]==[0,1,1,0]
    assert not notes_on(changed(cfg, swapped='hot'))

# Comparisons

def test_a_comparison_has_a_column_per_part(bed, tmp_path):
    def make(seed): return digits_learner(bed, seed=seed, bs=8)
    ends = []
    def noted(learn, epochs, lr):
        fit_plain(learn, epochs, lr)
        ends.append(learn)
    usual = dict(arms={'no proxy':fit_plain, 'mine':noted}, seeds=2, epochs=2, bar=False)
    cmp = compare(make, swapped='rest,hot', folder=tmp_path/'a', **usual)
    mine = cmp.df[cmp.df.arm=='mine']
    assert [*mine.rest_swapped]==[swapped_accuracy(o, 'rest') for o in ends]
    assert Comparison.kept(tmp_path/'a', ['no proxy','mine']).df.rest_swapped.equals(cmp.df.rest_swapped)
    plain = compare(make, measure=partial(swapped_accuracies, parts='hot'), **usual)
    cols = ['arm','seed','test','accuracy','trained','looked','hot_swapped']
    assert plain.df[cols].equals(cmp.df[cols]), 'no image of it counts as work of an arm'
    table = cmp.swapped_table()
    assert [*table.index]==['no proxy','mine'] and {a for a,_ in table}=={'rest_swapped','hot_swapped'}
    mean = cmp.df.groupby('arm').rest_swapped.mean()['mine']
    assert table.loc['mine',('rest_swapped','mean ± sd')].startswith(f'{100*mean:.1f} ± ') and '+0.0' in table.loc['mine'].iloc[1]
    assert [*cmp.swapped_table(diff=False)]==['hot_swapped','rest_swapped'] and compare(make, **usual).swapped_table().empty
    with pytest.raises(ValueError, match='another comparison. Swapped'): compare(make, swapped='rest', folder=tmp_path/'a', **usual)
    with pytest.raises(ValueError, match="did you mean 'rest'"): compare(make, swapped='rset', **usual)

def test_a_comparison_on_the_command_line(bed, finished_run, tmp_path, capsys):
    cfg,toml = from_toml(finished_run/'config.toml'),tmp_path/'c.toml'
    toml.write_text(to_toml(changed(cfg, suspect=str(finished_run), recipe='shortcut')))
    proxy_compare(config=str(toml), swapped='rest', arms='no proxy,cutout', seeds=1, out=str(tmp_path/'runs'))
    out = capsys.readouterr().out
    run, = (tmp_path/'runs').iterdir()
    assert 'Left out because its recipe is, too: suspect' in out and 'suspect' not in (run/'config.toml').read_text()
    df = pd.read_csv(run/'comparison.csv')
    assert re.search(r'in steps.*rest_swapped', out) and f'{100*df.rest_swapped[0]:.1f}' in out
    proxy_compare(resume=str(run), seeds=2, json=True)
    out = capsys.readouterr().out
    said = json.loads(out[out.index('{'):])
    assert [(o['arm'],o['n']) for o in said['swapped']['rest_swapped']]==[('no proxy',2),('cutout',2)]
    with pytest.raises(CliError, match="swapped='rest' there, 'hot' here"): proxy_compare(resume=str(run), swapped='hot')

# Sweeps

def test_a_sweep_can_choose_by_it(bed, tmp_path):
    run = folder_run(bed, epochs=2, recipe='none', swapped='rest', **tiny)
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial): return trial.number==1
    sweep = Sweep(run, 'wd=.01,.1', tmp_path/'s', 'grid', metric='rest_swapped', pruner=Second()).go(quiet=True)
    df = sweep.df
    assert sweep.study.direction.name=='MAXIMIZE' and df.state.tolist()==['complete','pruned'] and 'rest_swapped' in df.problem[1]
    hist = pd.read_csv(next((tmp_path/'s'/df.run[0]).glob('train_*'))/'history.csv')
    assert [*sweep.study.trials[0].intermediate_values.values()]==pytest.approx(hist.rest_swapped)
    assert df.rest_swapped[0]==round(hist.rest_swapped.iloc[-1], 6) # results of a run are kept with six digits
    with pytest.raises(ValueError, match="hot_swapped is measured only if it is asked for: give swapped='hot'"):
        Sweep(run, 'wd=.01,.1', tmp_path/'t', metric='hot_swapped')
    with pytest.raises(ValueError, match="did you mean 'rest_swapped'"): Sweep(run, 'wd=.01,.1', tmp_path/'t', metric='rest_swaped')
    with pytest.raises(ValueError, match="did you mean 'rest'"): Sweep(folder_run(bed, swapped='rset', **tiny), 'wd=.01,.1', tmp_path/'t')

def test_swapped_images_have_the_present_size(few, quiet, trained):
    "The images that a suspect has swapped are made again for other loaders"
    def sized(o): return ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0, item_tfms=Resize(o))
    small,large = map(sized, (28,40))
    suspect = Suspect(trained)
    learn = Learner(small, digits_net(), metrics=[accuracy, SwappedAccuracy('rest', suspect=suspect)])
    quiet(learn, 'fit', 2, 3e-3)
    learn.dls = large
    quiet(learn, 'fit', 1, 3e-3)
    assert learn.metrics[-1].set.images.shape[-2:]==(40,40)
    assert learn.recorder.values[-1][-1]==swapped_accuracy(learn, 'rest', suspect=suspect)

def test_a_part_of_ones_own(trained):
    def frame(share): return Masker('border', 'swap', width=share)
    with pytest.raises(TypeError, match='The part frame is a function of your own.*give `share`, too'): swapped_accuracy(trained, frame)
    assert 0<=swapped_accuracy(trained, frame, share=.1)<=1
    assert SwappedAccuracy(frame, share=.1).name=='frame_swapped'
