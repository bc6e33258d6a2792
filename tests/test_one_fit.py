"What is compared is what is trained: the command, an arm, `fit_proxy` and a trial of a sweep end with the same bits"
import json, shutil, warnings
from functools import partial
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from proxy_attention.core import ProxyWarning
from proxy_attention.data.digits import digits, digits_learner
from proxy_attention.experiment.arms import *
from proxy_attention.experiment.checkpoint import read_checkpoint
from proxy_attention.experiment.compare import compare, compare_folder, run_arm
from proxy_attention.experiment.config import Config, changed, from_toml, to_toml
from proxy_attention.experiment.identity import what_is
from proxy_attention.experiment.runs import run_state
from proxy_attention.experiment.learner import config_learner
from proxy_attention.experiment.settings import check_config
from proxy_attention.experiment.inputs import images_of
from proxy_attention.experiment.train import train_folder
from proxy_attention.proxy.callback import ProxyAttention
from proxy_attention.proxy.fits import head_first
from proxy_attention.proxy.recipes import recipes
import proxy_attention.experiment.learner as learner_module

@pytest.fixture(scope='module')
def path(tmp_path_factory): return digits(tmp_path_factory.mktemp('d')/'digits', n=80)

small = dict(arch='test_resnet', pretrained=False, size=32, bs=16, workers=0, augment='flips', epochs=3, lr=4e-3, seed=3)
quietly = lambda *o: None

@pytest.fixture(autouse=True)
def no_words():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning)
        yield

def command(path, tmp_path, **settings):
    "Weights that `proxy-train` ends with"
    run = train_folder(path, tmp_path/'runs', say=quietly, **(small|settings))
    return read_checkpoint(run/'checkpoints'/'last.pth')['model']

def arm(path, name, arms=None, **settings):
    "Weights that a comparison ends with"
    cfg,kept = changed(Config(), path=str(path), **(small|settings)),{}
    images = images_of(cfg)
    run_arm(
        lambda seed: config_learner(cfg, images, seed=seed), find_arm(name), name, 3, check_config(cfg), cfg.fit.lr, {},
        measure=lambda learn: kept.update(learn.model.state_dict()) or {},
        freeze_epochs=cfg.fit.freeze_epochs, lr_mult=cfg.fit.discriminative)
    return kept

def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('recipe,name', [
    ('none','no proxy'), *((o,o) for o in ('default','shortcut','masktune','rehearsed')),
    (dict(recipe='shortcut', area=.2),'shortcut(area=0.2)'),
    (dict(recipe='default', steps='1,p,2', fill='zero'),'default(steps=[1,"p",2],fill=zero)')])
def test_the_command_and_the_arm(path, tmp_path, recipe, name):
    settings = recipe if isinstance(recipe, dict) else dict(recipe=recipe)
    assert same(command(path, tmp_path, **settings), arm(path, name))

def freezes(monkeypatch):
    "Pretrained weights cannot be had here: the first weights stand for them, with the body frozen"
    usual = learner_module.arch_learner
    def made(make_dls, arch, size, pretrained):
        learn = usual(make_dls, arch, size, False)
        if pretrained: learn.freeze()
        return learn
    monkeypatch.setattr(learner_module, 'arch_learner', made)

class Phases(Callback):
    "Of each fit: epochs, the largest rates of the first and the last layers, and whether the body was frozen"
    def before_fit(self): self.fits = [*getattr(self, 'fits', []), [self.n_epoch, 0., 0., self.opt.frozen_idx>0]]
    def after_step(self):
        for i,h in ((1,self.opt.hypers[0]),(2,self.opt.hypers[-1])): self.fits[-1][i] = max(self.fits[-1][i], h['lr'])

@pytest.mark.parametrize('recipe,name', [('none','no proxy'), ('shortcut','shortcut'), ('masktune','masktune')])
def test_a_pretrained_body(path, tmp_path, monkeypatch, recipe, name):
    freezes(monkeypatch)
    kw = dict(pretrained=True, freeze_epochs=2, discriminative=10.)
    assert same(command(path, tmp_path, recipe=recipe, **kw), arm(path, name, **kw))

def test_a_pretrained_body_has_the_phases_of_fine_tune(path, monkeypatch):
    freezes(monkeypatch)
    cfg = changed(Config(), path=str(path), **small|dict(pretrained=True))
    learn = config_learner(cfg, images_of(cfg), seed=3).add_cb(Phases())
    with learn.no_bar(), learn.no_logging(): fit_plain(learn, 3, head_first(learn, 4e-3))
    theirs = config_learner(cfg, images_of(cfg), seed=3).add_cb(Phases())
    with theirs.no_bar(), theirs.no_logging(): theirs.fine_tune(3, 8e-3)
    ours,theirs = learn.phases.fits,theirs.phases.fits
    assert ours[0]==theirs[0] and ours[0][3] and not ours[1][3]
    assert ours[1]==pytest.approx(theirs[1], rel=.02)

def test_fine_tune_proxy_is_the_command(path, tmp_path, monkeypatch):
    freezes(monkeypatch)
    theirs = command(path, tmp_path, recipe='rehearsed', pretrained=True)
    cfg = changed(Config(), path=str(path), **small|dict(pretrained=True))
    learn = config_learner(cfg, images_of(cfg), seed=3)
    torch.manual_seed(0)
    set_seed(3)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune_proxy(3, 8e-3)
    assert same(theirs, learn.model.state_dict())

@pytest.mark.parametrize('name', ['shortcut','late','masktune','rehearsed'])
def test_fit_proxy_is_the_arm(path, name):
    cfg = changed(Config(), path=str(path), **small)
    learn = config_learner(cfg, images_of(cfg), seed=3)
    set_seed(3)
    learn.add_cb(recipes[name]())
    with learn.no_bar(), learn.no_logging(): learn.fit_proxy(3, 4e-3)
    assert same(arm(path, name), learn.model.state_dict())

def test_weight_decay_is_that_of_the_configuration(path, tmp_path):
    a,b = (command(path, tmp_path, recipe='none', wd=o) for o in (None,.5))
    assert not same(a, b) and same(b, arm(path, 'no proxy', wd=.5))

@pytest.mark.parametrize('said,there', [
    ('no proxy,late', ['no proxy','late']), ('', []),
    ('no proxy, last layer, afr,last layer,dac', ['no proxy','last layer, afr','last layer, dac']),
    ('shortcut(area=0.2,fill=zero), late', ['shortcut(area=0.2,fill=zero)','late']),
    ('late,last layer, proxies(recipe=background,passes=2),last layer,afr(gamma=(4,8))',
     ['late','last layer, proxies(recipe=background,passes=2)','last layer, afr(gamma=(4,8))']),
    ('default(steps=(1,"p",2),p=.5),late', ['default(steps=(1,"p",2),p=.5)','late']), ('a(b=1,c=(1,2)),d', ['a(b=1,c=(1,2))','d'])])
def test_arms_are_parted_by_commas_outside_of_brackets(said, there): assert split_arms(said)==there

def test_an_arm_with_settings():
    assert what_is(find_arm('shortcut(area=0.2,fill=zero,clear=true)'))==what_is(with_proxies('shortcut', area=.2, fill='zero', clear=True))
    assert what_is(find_arm('shortcut'))==what_is(with_proxies('shortcut'))
    for text,says in (('shortcut(area)', 'is not an arm'), ('shortcut(area=.2', 'is not an arm'),
                      ('shortcuts(area=.2)', "did you mean 'shortcut'"),
                      ('late(are=.2)', "did you mean 'area'"), ('nothing', 'arm')):
        with pytest.raises((ValueError,TypeError), match=says): find_arm(text)

def test_the_last_layer_with_settings(path):
    "From the command line it is the plain fit and then `fit_head`, bit for bit"
    def fitted(fit):
        set_seed(3)
        learn = digits_learner(path, bs=16)
        set_seed(3)
        with learn.no_bar(), learn.no_logging(): fit(learn)
        return learn.model.state_dict()
    def by_hand(learn, recipe='background'):
        fit_plain(learn, 2, 3e-3)
        learn.fit_head(recipe, passes=2, penalty=.02)
    got = fitted(lambda learn: find_arm('last layer, proxies(recipe=background,passes=2,penalty=.02)')(learn, 2, 3e-3))
    assert same(got, fitted(by_hand)) and not same(got, fitted(partial(by_hand, recipe=None)))

@pytest.mark.parametrize('text,says', [
    ('proxies(recipes=background)', "has no setting `recipes`, did you mean 'recipe'"), ('proxies(aera=.2)', "did you mean 'area'"),
    ('proxies(recipe=bakgroud)', "did you mean 'background'"), ('proxies(recipe=background,width=.1)', 'takes no `width`'),
    ('proxies(suspect=a)', 'leave `suspect` out'), ('proxies(recipe=none,area=.1)', 'area would not be used'),
    ('proxies(recipe=background,objects="none.csv")', 'does not probe'), ('afr(gama=8)', "did you mean 'gamma'"),
    ('afrs(gamma=8)', "did you mean 'last layer, afr'"), ('afr(8)', 'is not an arm')])
def test_settings_of_the_last_layer_are_refused_before_anything_is_trained(text, says):
    with pytest.raises((TypeError,ValueError), match=says): find_arm(f'last layer, {text}')

# A comparison of a folder

def compared(path, tmp_path, *args, **kwargs):
    return compare_folder(path, *args, out=tmp_path/'runs', say=quietly, **(small|dict(epochs=2)|kwargs))

@pytest.fixture(scope='module')
def done(path, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return compared(path, tmp_path_factory.mktemp('c'), 'no proxy,late', 1)

def test_more_seeds_and_arms(path, done, tmp_path):
    run = shutil.copytree(done, tmp_path/'run')
    old = {f.name:f.read_bytes() for f in (run/'records').glob('*_*.json')}
    assert compare_folder(arms='cutout', seeds=2, resume=run, say=quietly)==run
    new = {f.name:f.read_bytes() for f in (run/'records').glob('*_*.json')}
    assert len(old)==2 and len(new)==6 and {k:new[k] for k in old}==old
    assert json.loads((run/'asked.json').read_text())==dict(arms='no proxy,late,cutout', seeds=2)
    assert 'cutout' in (run/'verdict.txt').read_text()

def test_more_test_sets(path, done, tmp_path):
    run = shutil.copytree(done, tmp_path/'run')
    compare_folder(tests=f'flipped={path/"flipped"}', resume=run, say=quietly)
    assert set(json.loads((run/'records'/'late_0.json').read_text())['tests'])=={'valid','flipped'}

@pytest.mark.parametrize('kw,says', [
    (dict(epochs=5), 'with its own settings .epochs=2 there, 5 here.. Arms, seeds and test sets can be added'),
    (dict(lr=1e-3), 'lr=0.004 there'),
    (dict(path='digits2'), 'path='), (dict(config='x.toml'), 'leave out --config, or --resume'), (dict(arch='resnet18'), 'arch='),
    (dict(recipe='late'), 'cannot use recipe'), (dict(prune=.5), 'cannot use prune'), (dict(arms='nothing'), 'arm')])
def test_resume_refuses_what_would_be_another_comparison(done, tmp_path, kw, says):
    run = shutil.copytree(done, tmp_path/'run')
    before = {f:f.read_bytes() for f in run.rglob('*') if f.is_file()}
    with pytest.raises((ValueError,FileNotFoundError), match=says): compare_folder(resume=run, say=quietly, **kw)
    assert {f:f.read_bytes() for f in run.rglob('*') if f.is_file()}==before

def test_fewer_seeds_are_refused(done, path, tmp_path):
    run = shutil.copytree(done, tmp_path/'run')
    compare_folder(seeds=2, resume=run, say=quietly)
    with pytest.raises(ValueError, match='has 2 seeds, and seeds=1 would remove some'): compare_folder(seeds=1, resume=run, say=quietly)

def test_other_images_are_refused(path, tmp_path):
    mine = shutil.copytree(path, tmp_path/'mine')
    run = compared(mine, tmp_path, 'no proxy', 1)
    f = next((mine/'train').rglob('*.png'))
    f.write_bytes(next((mine/'train').rglob('1*.png')).read_bytes()+b' ')
    with pytest.raises(ValueError, match='contains another comparison. Training images, bytes'):
        compare_folder(seeds=2, resume=run, say=quietly)

@pytest.fixture(scope='module')
def suspects(path, tmp_path_factory):
    "Two finished runs with other weights"
    out = tmp_path_factory.mktemp('s')
    return [train_folder(path, out, say=quietly, **small|dict(epochs=1, recipe='none', seed=o)) for o in (1,2)]

def contents(run): return {f:f.read_bytes() for f in run.rglob('*') if f.name in ('identity.json','asked.json','config.toml')}

def test_a_refused_resume_leaves_the_comparison_as_it_was(path, suspects, tmp_path):
    "Neither its identity becomes that of other experiments, nor does a finished comparison become a failed one"
    suspect,test = Path(shutil.copytree(suspects[0], tmp_path/'suspect')),Path(shutil.copytree(path/'valid', tmp_path/'test'))
    run = compared(path, tmp_path, 'no proxy', 1, suspect=suspect, swapped='rest', tests=f't={test}')
    before = contents(run)
    assert len(before)==3 and run_state(run)=='finished'
    shutil.copy(suspects[1]/'model.safetensors', suspect)
    with pytest.raises(ValueError, match='Measure, suspect'): compare_folder(seeds=2, resume=run, say=quietly)
    assert contents(run)==before and run_state(run)=='finished'
    shutil.copy(suspects[0]/'model.safetensors', suspect)
    next(test.rglob('*.png')).unlink()
    with pytest.raises(ValueError, match="on another test set with the name 't'"): compare_folder(resume=run, say=quietly)
    assert contents(run)==before and run_state(run)=='finished'

def test_two_processes_that_add_to_one_comparison(path, done, tmp_path):
    "The second does not overwrite what the first has added; the same command adds to it"
    run = shutil.copytree(done, tmp_path/'run')
    was = json.loads((run/'asked.json').read_text())
    def meanwhile(message):
        if message.startswith('Run folder'): (run/'asked.json').write_text(json.dumps(was|dict(arms=was['arms']+',thesis')))
    with pytest.raises(ValueError, match=r"Another process has added to .* \(arms .*thesis, seeds .*run this command again"):
        compare_folder(arms='masktune', resume=run, say=meanwhile)
    assert json.loads((run/'asked.json').read_text())['arms'].endswith(',thesis')

def test_an_error_does_not_undo_what_another_process_has_added(path, done, tmp_path, monkeypatch):
    run = shutil.copytree(done, tmp_path/'run')
    def fails(*args, **kwargs):
        asked = json.loads((run/'asked.json').read_text())
        (run/'asked.json').write_text(json.dumps(asked|dict(arms=asked['arms']+',thesis')))
        raise RuntimeError('no memory')
    monkeypatch.setattr('proxy_attention.experiment.compare.compare', fails)
    with pytest.raises(RuntimeError, match='no memory'): compare_folder(arms='masktune', resume=run, say=quietly)
    assert json.loads((run/'asked.json').read_text())['arms'].endswith('masktune,thesis')

def test_an_arm_that_cannot_be_trained_is_not_added(path, done, tmp_path):
    "It would fail again in each further resume"
    run = shutil.copytree(done, tmp_path/'run')
    with pytest.raises(ValueError, match="No layer is called 'nope'"): compare_folder(arms='late(layer=nope)', resume=run, say=quietly)
    assert compare_folder(seeds=1, resume=run, say=quietly)==run and run_state(run)=='finished'

def test_a_comparison_whose_suspect_or_split_was_moved(path, suspects, tmp_path):
    "The split is in its folder; the suspect is given, and other weights are refused"
    mine = Path(shutil.copytree(suspects[0], tmp_path/'mine'))
    run = compared(path, tmp_path, 'no proxy', 1, suspect=mine, swapped='rest', split=mine)
    mine.rename(tmp_path/'there')
    with pytest.raises(FileNotFoundError, match='There is no model'): compare_folder(seeds=2, resume=run, say=quietly)
    with pytest.raises(ValueError, match='did not start with the suspect'):
        compare_folder(seeds=2, resume=run, suspect=suspects[1], say=quietly)
    compare_folder(seeds=2, resume=run, suspect=tmp_path/'there', say=quietly)
    assert len(list((run/'records').glob('*_*.json')))==2
    assert from_toml(run/'config.toml').proxy.suspect==str(tmp_path/'there'/'model.safetensors')

def test_settings_of_a_single_training_are_left_out_with_a_sentence(path, tmp_path):
    toml,told = tmp_path/'config.toml',[]
    toml.write_text(to_toml(changed(Config(), path=str(path), **small|dict(epochs=2, find_lr=True, prune=.3))))
    run = compare_folder(arms='no proxy', seeds=1, config=toml, out=tmp_path/'runs', say=told.append)
    assert f'Left out because a comparison does not use them: find_lr, prune of {toml}.' in told
    assert from_toml(run/'config.toml').fit==changed(Config(), **dict(epochs=2, lr=small['lr'])).fit

@pytest.mark.parametrize('arms', ['', ' , '])
def test_no_arm_is_a_sentence(path, tmp_path, arms):
    with pytest.raises(ValueError, match='No arm is given'): compared(path, tmp_path, arms, 1)

def test_from_the_configuration_of_a_run(path, tmp_path):
    "Its recipe is left to the arms, its length is kept"
    run = train_folder(path, tmp_path/'runs', say=quietly, **small|dict(epochs=None, steps='1,p,2', recipe='late'))
    made = compare_folder(arms='no proxy', seeds=1, config=run/'config.toml', out=tmp_path/'runs', say=quietly)
    cfg = from_toml(made/'config.toml')
    assert (cfg.proxy.recipe,cfg.proxy.steps,cfg.fit.epochs,cfg.data.size)==('none',None,3,32)

@pytest.mark.parametrize('kw', [dict(epochs=1), dict(seeds=0), dict(arms='nothing'), dict(tests='a'), dict(tests='a=nowhere')])
def test_what_is_refused_leaves_no_folder(path, tmp_path, kw):
    with pytest.raises((ValueError,FileNotFoundError)): compared(path, tmp_path, **kw)
    assert not (tmp_path/'runs').exists() or not list((tmp_path/'runs').iterdir())

def test_a_failed_start_leaves_no_folder(path, tmp_path, monkeypatch):
    def fails(*args, **kwargs): raise RuntimeError('no memory')
    monkeypatch.setattr(learner_module, 'arch_learner', fails)
    with pytest.raises(RuntimeError): compared(path, tmp_path, 'no proxy', 1)
    assert not list((tmp_path/'runs').iterdir())
