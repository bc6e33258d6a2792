"A network that has been trained already shows where to mask its successor"
import json, pytest, shutil, warm
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.digits import bed_learner, digit_images, digits_learner
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.attribution.methods import Suspect
from proxy_attention.proxy.fits import one_probe_epoch
from proxy_attention.proxy.successor import IfCarried
from proxy_attention.experiment.arms import with_proxies
from proxy_attention.experiment.compare import compare_folder, run_arm
from proxy_attention.experiment.config import Config, ProxyConfig, from_toml
from proxy_attention.experiment.learner import config_learner
from proxy_attention.experiment.settings import check_config
from proxy_attention.experiment.inputs import images_of
from proxy_attention.interpret.choosing import swapped_accuracies
from proxy_attention.interpret.use import open_learner
from proxy_attention.proxy.step import Settings, heat_of_items
from test_checkpoint import Cut

pytestmark = pytest.mark.limit(90)

@pytest.fixture(scope='module')
def bed(tmp_path_factory):
    "Is the digit 5 or more? A patch in a corner says it, too"
    return two_colours(tmp_path_factory.mktemp('bed')/'two', n_train=240, n_test=100)

@pytest.fixture(scope='module')
def honest_bed(tmp_path_factory): return no_shortcut(tmp_path_factory.mktemp('bed')/'none', n_train=400, n_test=100)

@pytest.fixture(scope='module')
def suspect(bed):
    learn = bed_learner(bed, seed=3, bs=16)
    with learn.no_bar(), learn.no_logging(): one_probe_epoch(learn, 3, 1e-2)
    return learn

class Count(Callback):
    "Optimizer steps, over all fits"
    def before_fit(self): self.n = getattr(self, 'n', 0)
    def after_step(self): self.n += 1

# Whose heat

def test_a_copy_is_kept_as_it_is(suspect, quiet):
    s,x = Suspect(suspect),suspect.dls.valid.one_batch()[0]
    before = s(suspect.model)(x)
    other = bed_learner(suspect.dls.path, seed=5, bs=16)
    assert torch.equal(s(other.model)(x), before) and s.model is not suspect.model
    later = bed_learner(suspect.dls.path, seed=3, bs=16)
    own = Suspect(later)
    was = own(later.model)(x)
    quiet(later, 'fit', 1, 1e-2)
    assert torch.equal(own(later.model)(x), was)

def test_a_step_before_the_first_epoch(suspect, quiet):
    pa = ProxyAttention(steps=['p',2], attribution=Suspect(suspect), select='all', p=1.)
    learn = quiet(bed_learner(suspect.dls.path, bs=16, cbs=pa), 'fit', 2, 1e-3)
    n = len(learn.dls.train_ds)
    assert pa.history.epoch.tolist()==[-1] and pa.history.chosen.tolist()==[n]
    assert [(o['epoch'],o['served']) for o in pa.fit_state.record.epochs]==[(e, len(learn.dls.train)*16) for e in (0,1)]
    theirs = heat_of_items(suspect, Settings(), torch.arange(n))[0]
    assert torch.equal(torch.stack([pa.store[i] for i in pa.store]), theirs[list(pa.store)])
    assert torch.equal(pa.interp.losses.as_subclass(Tensor), interpret_train(suspect).losses.as_subclass(Tensor)), "the suspect's losses"

def test_never_served_it_leaves_no_trace(bed, suspect, weights, same, quiet):
    plain = quiet(bed_learner(bed, bs=16), 'fit', 2, 1e-3)
    for losses in ('exact','running'):
        pa = ProxyAttention(steps=['p',2], attribution=Suspect(suspect), select='all', p=0., losses=losses)
        learn = quiet(bed_learner(bed, bs=16, cbs=pa), 'fit', 2, 1e-3)
        assert same(weights(learn), weights(plain)) and learn.recorder.values==plain.recorder.values and len(pa.history)==1

def test_an_export_carries_no_second_model(bed, suspect, quiet, tmp_path):
    learn = bed_learner(bed, bs=16, cbs=ProxyAttention(steps=['p',1], attribution=Suspect(suspect)))
    quiet(learn, 'fit', 1, 1e-3)
    learn.export(tmp_path/'with.pkl')
    learn.remove_cb(ProxyAttention)
    learn.export(tmp_path/'without.pkl')
    assert (tmp_path/'with.pkl').stat().st_size<(tmp_path/'without.pkl').stat().st_size+5_000
    with pytest.raises(ValueError, match=r'its attribution \(a suspect, or your own'): _train_again(tmp_path/'with.pkl', bed)

def _train_again(f, bed):
    again = load_learner(f)
    again.dls = bed_learner(bed, bs=16).dls
    with again.no_bar(), again.no_logging(): again.fit(2, 1e-3)

# What is refused

def test_what_cannot_be_a_suspect(bed, suspect, few, quiet):
    with pytest.raises(ValueError, match='before the model has learned anything to look at'): ProxyAttention(steps=['p',2])
    with pytest.raises(ValueError, match='need 5 epochs, this fit has 2'):
        quiet(bed_learner(bed, cbs=ProxyAttention(steps=['p',5], attribution=Suspect(suspect))), 'fit', 2)
    with pytest.raises(ValueError, match='trained with other classes'): bed_learner(bed).fit_proxy(2, suspect=digits_learner(few))
    dls = ImageDataLoaders.from_folder(bed, train='train', valid='valid', num_workers=0, batch_tfms=Normalize.from_stats(*imagenet_stats))
    with pytest.raises(ValueError, match='trained with other normalization'):
        bed_learner(bed).fit_proxy(2, suspect=Learner(dls, digits_net(2), loss_func=CrossEntropyLossFlat()))
    with pytest.raises(ValueError, match='has a ProxyAttention of its own'):
        bed_learner(bed, cbs=ProxyAttention(start=1)).fit_proxy(2, suspect=suspect)
    with pytest.raises(TypeError, match='a trained Learner or a torch module'): bed_learner(bed).fit_proxy(2, suspect='model.pkl')

@pytest.mark.filterwarnings('ignore:All parameters of this model are in one group')
@pytest.mark.parametrize('fit', ['fit_proxy','fine_tune_proxy'])
def test_a_cell_is_run_twice(bed, suspect, quiet, fit):
    "What `fit_proxy` has added itself is no callback of the user's own; another suspect takes the place of the first"
    learn,other = bed_learner(bed, bs=16),deepcopy(suspect.model)
    with torch.no_grad(): other[-1].bias += .01
    for o in (suspect,suspect,other): quiet(learn, fit, 2, suspect=o)
    assert len(learn.cbs.filter(risinstance(ProxyAttention)))==1
    assert all(map(torch.equal, learn.proxy_attention.suspect.model.state_dict().values(), other.state_dict().values()))

def test_a_number_of_epochs_is_a_number(bed):
    with pytest.raises(TypeError, match="n_epoch='3' should be a whole number"): bed_learner(bed).fine_tune_proxy('3')

def test_a_single_class_is_refused_before_a_suspect_is_trained(bed, quiet, tmp_path):
    for o in ('train','valid'): shutil.copytree(bed/o/'0', tmp_path/o/'0')
    learn = bed_learner(tmp_path, bs=16, cbs=Count())
    with pytest.raises(ValueError, match="There is only one class, '0'"): quiet(learn, 'fit_proxy', 2)
    assert not getattr(learn.count, 'n', 0)

def test_a_loader_without_a_batch_is_refused_before_the_fit(bed, quiet):
    learn = bed_learner(bed, bs=1000)
    for f in ('fit_proxy','fine_tune_proxy'):
        with pytest.raises(ValueError, match='do not fill a batch of 1000'): quiet(learn, f, 2)

# A suspect and its successor

def test_the_successor_is_masked_where_the_suspect_looked(bed, quiet):
    learn = bed_learner(bed, seed=1, bs=16, cbs=Count())
    quiet(learn, 'fit_proxy', 4, 1e-2)
    pa = learn.proxy_attention
    assert pa.history.epoch.tolist()==[-1] and learn.count.n==2*4*len(learn.dls.train)
    assert pa.history.area[0]<=.2
    plain = bed_learner(bed, seed=1, bs=16)
    with plain.no_bar(), plain.no_logging(): one_probe_epoch(plain, 4, 1e-2)
    assert accuracy_on(plain, bed/'flipped')<.3 and accuracy_on(learn, bed/'flipped')>.6
    assert all(torch.equal(a, b) for a,b in zip(plain.model.state_dict().values(), pa.suspect.model.state_dict().values()))

def test_a_given_suspect_is_not_trained_again(bed, suspect, quiet, weights, same):
    before = weights(suspect)
    learn = bed_learner(bed, seed=1, bs=16, cbs=Count())
    quiet(learn, 'fit_proxy', 3, 1e-2, suspect=suspect)
    assert learn.count.n==3*len(learn.dls.train) and learn.proxy_attention.history.epoch.tolist()==[-1]
    assert same(weights(suspect), before)

def test_nothing_to_cure_is_the_plain_fit_once(honest_bed, quiet, weights, same):
    plain = bed_learner(honest_bed, bs=16)
    with plain.no_bar(), plain.no_logging(): one_probe_epoch(plain, 5, 1e-2)
    learn = bed_learner(honest_bed, bs=16, cbs=Count())
    with pytest.warns(ProxyWarning, match='nothing is masked'): quiet(learn, 'fit_proxy', 5, 1e-2)
    assert same(weights(learn), weights(plain)) and learn.count.n==5*len(learn.dls.train) and len(learn.proxy_attention.history)==0

def test_it_says_what_it_does(bed, capsys):
    learn = bed_learner(bed, seed=1, bs=16)
    with learn.no_bar(): learn.fit_proxy(2, 1e-2)
    out = capsys.readouterr().out
    assert 'First, a suspect is trained to the end' in out and 'a successor is trained from the same weights' in out

class Rates(Callback):
    "The rates of each step, by group"
    def before_fit(self): self.fits = [*getattr(self, 'fits', []), []]
    def after_step(self): self.fits[-1].append([h['lr'] for h in self.opt.hypers])

def test_fine_tune_proxy_has_the_phases_of_fine_tune(bed, quiet, weights, same):
    def learner(cbs=None):
        set_seed(1)
        dls = ImageDataLoaders.from_folder(bed, train='train', valid='valid', bs=16, num_workers=0)
        return vision_learner(dls, 'test_resnet', pretrained=False, metrics=accuracy, cbs=cbs)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning)
        ours,theirs = learner(Rates()),learner(Rates())
        quiet(ours, 'fine_tune_proxy', 2, 1e-2)
        quiet(theirs, 'fine_tune', 2, 1e-2)
    assert ours.rates.fits[0]==theirs.rates.fits[0] and len(ours.rates.fits)==2+len(ours.proxy_attention.history)
    for fit in ours.rates.fits[1:]: assert np.allclose(max(fit), max(theirs.rates.fits[1]), rtol=.02), 'the same rates, layer by layer'
    assert all(o.requires_grad for o in ours.model.parameters())
    own = learner(ProxyAttention(steps=[1,'p',1]))
    quiet(own, 'fine_tune_proxy', 2, 1e-2)
    assert own.proxy_attention.history.fit.tolist()==[1], 'the frozen phase belongs to no schedule'

def test_a_frozen_body_is_told(bed, quiet):
    dls = ImageDataLoaders.from_folder(bed, train='train', valid='valid', bs=16, num_workers=0)
    learn = vision_learner(dls, 'test_resnet', pretrained=False, cbs=ProxyAttention(steps=[1,'p',1]))
    learn.freeze()
    with pytest.warns(ProxyWarning, match='only its head is trained'): quiet(learn, 'fit_proxy', 2, 1e-2)

# A network that has learned nothing

def test_nothing_is_concluded_from_a_network_at_chance(bed):
    learn = bed_learner(bed, bs=16)
    found = probe(learn)
    assert found.learned is False and found.grade=='unclear' and not found.likely
    assert 'has learned nothing yet' in found.verdict() and f'chance would have been right on {found.chance:.0%}' in found.verdict()
    assert 'nothing yet' in found._repr_html_()

class Deaf(Callback):
    "Learns nothing in the first epochs"
    order = 50
    def __init__(self, n): self.n = n
    def before_step(self):
        if self.epoch<self.n: raise CancelStepException

def test_it_is_asked_again_after_the_next_epoch(bed, quiet):
    learn = bed_learner(bed, seed=1, bs=16, cbs=[ProxyAttention.probed(), Deaf(1)])
    with pytest.warns(ProxyWarning, match='probed again after the next epoch'): quiet(learn, 'fit', 4, 1e-2)
    assert learn.proxy_attention.history.epoch.tolist()==[1]
    with pytest.warns(ProxyWarning): quiet(learn, 'fit', 1, 1e-2)
    learn = bed_learner(bed, bs=16, cbs=[ProxyAttention.probed(), Deaf(9)])
    with pytest.warns(ProxyWarning, match='probed again'): quiet(learn, 'fit', 2, 1e-2)
    assert len(learn.proxy_attention.history)==0

def test_two_callbacks_of_one_recipe_share_no_answer():
    a,b = ProxyAttention.probed(),ProxyAttention.probed()
    a.schedule.answer = False
    assert b.schedule.answer is None and ProxyAttention.probed().schedule.answer is None

# Stopped, and gone on with

def rehearse(bed, folder, *cbs, epochs=2):
    learn = bed_learner(bed, seed=1, bs=16, cbs=[*cbs, Checkpoint(folder/'ckpt', resume=True)])
    with learn.no_bar(), learn.no_logging(): recipes['rehearsed'].train(learn, epochs, 1e-2, dict(folder=folder/'own'))
    return learn

@pytest.fixture(scope='module')
def whole(bed, tmp_path_factory):
    "A run that was never cut, and its folder"
    folder = tmp_path_factory.mktemp('whole')
    return rehearse(bed, folder),folder

@pytest.mark.parametrize('cut', [(1,1,1),(0,1,2),(1,1,2)])
def test_gone_on_with_it_ends_with_the_same_bits(bed, whole, tmp_path, weights, same, cut):
    learn,folder = whole
    with pytest.raises(KeyboardInterrupt): rehearse(bed, tmp_path, Cut(*cut))
    again = rehearse(bed, tmp_path)
    assert same(weights(learn), weights(again)) and again.recorder.values==learn.recorder.values
    pa,pb = learn.proxy_attention,again.proxy_attention
    assert pa.history.drop(columns='seconds').equals(pb.history.drop(columns='seconds')) and pa.history.epoch.tolist()==[-1]
    a,b = (HeatmapStore.load(o/'own'/'heat.npz') for o in (folder,tmp_path))
    assert np.array_equal(a.grids, b.grids)

def test_what_cannot_work_is_said_before_the_suspect_is_trained(bed, whole, tmp_path):
    for kw,words in ((dict(folder=whole[1]/'own'), 'the suspect of another run|proxies of another run'),
                     (dict(folder=bed/'train'/'own'), 'lie|images'), (dict(fill=lambda img: img[:2]), 'the whole image')):
        learn = bed_learner(bed, bs=16, cbs=Count())
        with learn.no_bar(), learn.no_logging(), pytest.raises((ValueError,TypeError,OSError), match=words):
            recipes['rehearsed'].train(learn, 2, 1e-2, kw)
        assert getattr(learn.count, 'n', 0)<=(2*len(learn.dls.train) if 'suspect' in words else 0)

def test_objects_are_read_before_the_suspect_is_trained(bed):
    drawn = draw_boxes(get_image_files(bed/'train')[:2])
    with pytest.raises(TypeError, match="the text that `draw_boxes` writes"): bed_learner(bed, bs=16).fit_proxy(2, objects=drawn)

def test_objects_of_no_training_image_are_refused_before_the_suspect_is_trained(bed):
    learn,other = bed_learner(bed, bs=16, cbs=Count()),{str(o):(0,0,5,5) for o in get_image_files(bed/'valid')[:4]}
    for known,words in ((other,'0 have an object'), (other|{str(learn.dls.train_ds.items[3]):(0,0,5,5)},'1 have an object')):
        with learn.no_bar(), pytest.raises(ValueError, match=f'{words}.*name at least two training images'):
            learn.fit_proxy(2, 1e-2, objects=known)
    assert not getattr(learn.count, 'n', 0), 'no batch was trained'

@pytest.fixture(scope='module')
def by_background(tmp_path_factory):
    "A learner of digits on a dark red or a dark blue background, which is the class: the digit says nothing"
    path = tmp_path_factory.mktemp('backgrounds')
    for i,img in enumerate(digit_images()[0][:160]):
        f = path/('valid' if i%4>1 else 'train')/str(i%2)/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        x = np.asarray(img)[...,None].repeat(3, -1).astype(int)
        Image.fromarray((x+(x<100)*np.array([(60,20,20),(20,20,60)][i%2])).clip(0, 255).astype(np.uint8)).save(f)
    learn = digits_learner(path, bs=16)
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 5e-3)
    return learn

def test_boxes_lead_to_the_rest_being_swapped(by_background, quiet, monkeypatch):
    "Without boxes only a look is found, which is not treated; the size of each image is read once, whoever asks for its box"
    import proxy_attention.data.objects as module
    def fitted(**kwargs):
        learn = digits_learner(by_background.dls.path, bs=16)
        return quiet(learn, 'fit_proxy', 3, 5e-3, suspect=by_background, **kwargs).proxy_attention
    with pytest.warns(ProxyWarning, match='nothing is masked'): assert fitted().schedule.answer is False
    opened,real = [],module._opened
    monkeypatch.setattr(module, '_opened', lambda f,use: (opened.append(str(f)), real(f, use))[1])
    boxes = {str(f):(2,2,26,26) for f in by_background.dls.train_ds.items[::2]}
    pa = fitted(objects=boxes)
    assert pa.schedule.answer==dict(rule='rest', keep=.3, fill='swap_shared', donor='balanced', balance=True)
    assert pa.history.epoch.tolist()==[-1] and pa.history.made.tolist()==[80] and .65<pa.history.area.item()<.75
    assert sorted(opened)==sorted(boxes)

def test_the_answer_is_kept_with_a_checkpoint():
    s = IfCarried()
    s.asked,s.answer = 0,dict(area=.1)
    t = IfCarried()
    t.load_state_dict(s.state_dict())
    assert (t.asked,t.answer)==(0,dict(area=.1))

# On the command line

def test_on_the_command_line(bed, tmp_path):
    args = ['--arch','test_resnet','--pretrained','no','--size',32,'--workers',0,'--bs',16,'--augment','none','--lr','1e-2','--epochs',3]
    one = train_folder(bed, tmp_path/'runs', recipe='none', arch='test_resnet', pretrained=False, size=32, workers=0, bs=16,
                       augment='none', lr=1e-2, epochs=2, say=noop)
    res = warm.run(warm.script, 'proxy-train', bed, *args, '--suspect', one.name, '--out', tmp_path/'more', cwd=one.parent)
    assert res.returncode==0, res.stderr
    run, = (tmp_path/'more').iterdir()
    said = (run/'config.toml').read_text()
    assert 'recipe = "rehearsed"' in said and f'suspect = "{(one/"model.safetensors").resolve()}"' in said
    assert len(pd.read_csv(run/'history.csv'))==3
    assert check_config(Config(proxy=ProxyConfig(suspect=str(one), recipe='shortcut', steps='p,3')))==3
    res = warm.run(warm.script, 'proxy-train', bed, *args, '--suspect', 'nowhere', '--out', tmp_path/'more')
    assert res.returncode==2 and 'There is no model' in res.stderr and len(os.listdir(tmp_path/'more'))==1

# In a comparison

@pytest.fixture(scope='module')
def compared(bed, tmp_path_factory):
    "The run of a suspect, and a comparison with it"
    at = tmp_path_factory.mktemp('compared')
    kw = dict(arch='test_resnet', pretrained=False, size=32, workers=0, bs=16, augment='none', lr=1e-2)
    one = train_folder(bed, at/'runs', recipe='none', epochs=3, say=noop, **kw)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning)
        run = compare_folder(bed, 'no proxy,random mask,shortcut', 1, out=at/'runs', suspect=str(one), swapped='hot', epochs=2,
                             say=noop, **kw)
    return one,run,kw

def record(run, arm): return json.loads((run/'records'/f'{arm}_0.json').read_text())

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_arms_of_a_comparison_mask_where_the_suspect_looked(bed, compared, tmp_path):
    "As the arm by hand, bit for bit; what has no recipe is as without a suspect, and all networks are measured on the same swaps"
    one,run,kw = compared
    other = compare_folder(bed, 'no proxy,random mask,shortcut', 1, out=tmp_path, epochs=2, say=noop, **kw)
    for o in ('no_proxy','random_mask'): assert record(run, o)['tests']==record(other, o)['tests']
    cfg = from_toml(run/'config.toml')
    assert cfg.proxy.suspect==str((one/'model.safetensors').resolve())
    suspect,images = Suspect(open_learner(one)),images_of(cfg)
    by_hand = run_arm(lambda seed: config_learner(cfg, images, seed=seed), with_proxies('shortcut', attribution=suspect), 'shortcut',
                      0, 2, 1e-2, dict(valid=lambda learn: learn.dls.valid),
                      measure=partial(swapped_accuracies, parts='hot', suspect=suspect))
    assert by_hand['tests']==record(run, 'shortcut')['tests']!=record(other, 'shortcut')['tests']
    assert by_hand['measures']==record(run, 'shortcut')['measures'] and set(by_hand['measures'])=={'hot_swapped'}
    assert len({record(run, o)['measures']['hot_swapped'] for o in ('no_proxy','shortcut')})==2
    only = compare_folder(bed, 'no proxy', 1, out=tmp_path, suspect=str(one), swapped='hot', epochs=2, say=noop, **kw) # to measure by
    assert record(only, 'no_proxy')['measures']==record(run, 'no_proxy')['measures']

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_a_comparison_with_a_suspect_is_resumed(bed, compared, tmp_path):
    "Without naming the suspect again, or with the same one; another network in its place is refused"
    one,run,kw = compared
    mine,former = shutil.copytree(run, tmp_path/'run'),(one/'model.safetensors').read_bytes()
    assert compare_folder(resume=mine, arms='late', suspect=str(one), say=noop)==mine and record(mine, 'late')['proxies']>0
    with pytest.raises(ValueError, match='did not start with the suspect'): compare_folder(resume=mine, suspect=str(tmp_path), say=noop)
    try:
        other = train_folder(bed, tmp_path/'runs', recipe='none', epochs=1, say=noop, **kw)
        shutil.copy(other/'model.safetensors', one)
        with pytest.raises(ValueError, match='contains another comparison'): compare_folder(resume=mine, seeds=2, say=noop)
    finally: (one/'model.safetensors').write_bytes(former)

@pytest.mark.parametrize('arms,suspect,says', [
    ('no proxy,random mask', '', 'None of the arms no proxy, random mask has a recipe'), ('no proxy,shortcut', 'x', 'There is no model'),
    ('no proxy,shortcut(attribution=GradCAM)', '', 'has an attribution of its own')])
def test_a_suspect_that_no_arm_would_use(bed, compared, tmp_path, arms, suspect, says):
    one,_,kw = compared
    with pytest.raises((ValueError,TypeError,FileNotFoundError), match=says):
        compare_folder(bed, arms, 1, out=tmp_path, suspect=str(one/suspect), epochs=2, say=noop, **kw)
    assert not any(tmp_path.iterdir())

def test_the_suspect_of_a_configuration_is_left_out(bed, compared, tmp_path):
    "It belongs to the recipe of that run"
    said = []
    with pytest.raises(ValueError, match='No arm is called'):
        compare_folder(bed, 'nothing', config=compared[1]/'config.toml', out=tmp_path, say=said.append)
    assert any('Left out' in o and 'suspect' in o for o in said)

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_objects_on_the_command_line(bed, tmp_path):
    "The boxes of the bed's own table reach the probe"
    about = pd.read_csv(bed/'about.csv')
    about[about.part=='train'].to_csv(tmp_path/'boxes.csv', index=False)
    seen = []
    run = train_folder(bed, tmp_path/'runs', recipe='probed', objects=str(tmp_path/'boxes.csv'), arch='test_resnet', pretrained=False,
                       size=32, workers=0, bs=16, augment='none', lr=1e-2, epochs=2, say=seen.append)
    said = (run/'config.toml').read_text()
    assert f'objects = "{(tmp_path/"boxes.csv").resolve()}"' in said and len(pd.read_csv(run/'history.csv'))==2

class SaysYes(IfCarried):
    "Finds something in the `at`-th network that it is asked about, and nothing in those before"
    def __init__(self, at): super().__init__(); self.at,self.models = at,[]
    def ask(self, learn, warns=True):
        self.models.append(deepcopy(learn.proxy_attention.suspect.model.state_dict()))
        self.answer,self.said = dict(area=.1) if len(self.models)==self.at else False,'It leans on nothing.'
        return self.answer

class After(Callback):
    "The weights after each epoch"
    def before_fit(self): self.states = getattr(self, 'states', [])
    def after_epoch(self): self.states.append(deepcopy(self.learn.model.state_dict()))

@pytest.mark.parametrize('at', [1,2,3])
def test_a_suspect_is_asked_at_its_end_and_as_it_was_after_its_first_epoch(at, bed, same, quiet, tmp_path):
    schedule,learn = SaysYes(at),bed_learner(bed, bs=16, cbs=After())
    learn.add_cb(ProxyAttention.rehearsed(steps=schedule, folder=tmp_path))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        quiet(learn, 'fit_proxy', 2, 1e-2)
    ends = learn.after.states
    assert all(same(a, b) for a,b in zip(schedule.models, (ends[1],ends[0]))) and len(schedule.models)==min(at, 2)
    assert len(ends)==(2 if at==3 else 4), 'the fits of a suspect and, if one leans, of a successor'
    assert same(learn.proxy_attention.suspect.model.state_dict(), ends[0] if at==2 else ends[1])
    said = [str(o.message) for o in told if issubclass(o.category, ProxyWarning)]
    assert any(o=='It leans on nothing. The result was the same after its first epoch.' for o in said)==(at==3)
    assert same(torch.load(tmp_path/'suspect_young.pth', weights_only=True), ends[0])

def tuned(path):
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=16, num_workers=0)
    return vision_learner(dls, 'test_resnet', pretrained=False, metrics=accuracy)

unfit = [dict(suspect='model.pkl'), dict(objects={'elsewhere.png':[0,0,5,5]}), dict(area=.1), dict(lr_max=1e-3),
         dict(probe=2), dict(probe=0)]

said = ('suspect is a trained Learner|name at least two training|fit_proxy takes no `area`.* to the callback|give `base_lr`'
        '|too short for 2 probe|probe=0 should be')

@pytest.mark.parametrize('args', unfit, ids=lambda o: next(iter(o)))
def test_the_head_is_not_trained_before_an_argument_is_refused(few, quiet, weights, same, args):
    learn = tuned(few)
    before = weights(learn)
    with pytest.raises((TypeError,ValueError), match=said): quiet(learn, 'fine_tune_proxy', 2, **args)
    assert same(weights(learn), before) and not hasattr(learn, 'proxy_attention')

def test_the_head_is_not_trained_before_a_loss_is_refused(few, quiet, weights, same):
    learn = tuned(few)
    learn.loss_func = lambda out,y: F.cross_entropy(out, y)
    before = weights(learn)
    with pytest.raises(TypeError, match='cannot return per-sample losses'): quiet(learn, 'fine_tune_proxy', 2)
    assert same(weights(learn), before)

@pytest.mark.parametrize('args', [dict(area=.1), dict(probe=2)], ids=lambda o: next(iter(o)))
def test_a_refused_learner_keeps_its_callbacks(few, quiet, args):
    learn = digits_learner(few)
    with pytest.raises((TypeError,ValueError), match=said): quiet(learn, 'fit_proxy', 2, **args)
    assert not hasattr(learn, 'proxy_attention')

@pytest.mark.parametrize('fit', ['fit_head','fit_proxy'])
def test_an_exported_learner_has_no_training_images(few, tmp_path, fit):
    learn = digits_learner(few, bs=8)
    learn.path = tmp_path
    learn.export()
    args = () if fit=='fit_head' else (2,)
    with pytest.raises(ValueError, match='There are no training images. An exported learner has none'):
        getattr(load_learner(tmp_path/'export.pkl'), fit)(*args)

def test_ctrl_c_in_the_probe_leaves_no_suspect(bed, monkeypatch):
    "The next call begins anew, instead of a successor that starts from the weights of the suspect"
    def stops(*args, **kwargs): raise KeyboardInterrupt
    learn = bed_learner(bed, seed=0, bs=16)
    with monkeypatch.context() as m, learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt):
        m.setattr('proxy_attention.proxy.successor.probe', stops)
        learn.fit_proxy(2, 1e-2)
    assert learn.proxy_attention.suspect is None
