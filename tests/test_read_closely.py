"What a close reading of `attribution` and `interpret` found, each with a test that failed then"
import random
from contextlib import suppress
import pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.finer import Smoothed
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.attribution.methods import as_attribution
from proxy_attention.attribution.targets import Index, Margin, Region
from proxy_attention.attribution.tasks import PixelLabels
from proxy_attention.data.pixels import pixel_bed, pixel_learner
from proxy_attention.interpret.heats import show_heat
from proxy_attention.interpret.metrics import impute
from proxy_attention.interpret.moves import fit_of
from proxy_attention.interpret.pixels import ContextProbe, probe_pixels
from proxy_attention.interpret.swaps import probe_donors
from proxy_attention.interpret.use import Looker

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')

def small_net(c_in=3, n_out=4):
    "Two convolutions and a head"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(c_in, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out)).eval()

# ---- attribution

@pytest.mark.parametrize('how', ['GradCAM','LayerCAM','Saliency'])
@pytest.mark.parametrize('target', ['label','tensor'])
def test_labels_from_inference_mode(how, target):
    "Labels and indices made there can be explained, as images can"
    x,y,net = torch.randn(2,3,16,16),torch.tensor([1,2]),small_net()
    made = as_attribution(how)
    should = made(net, target='label')(x, y)
    with torch.inference_mode():
        i = y+0
        heat = made(net, target='label')(x+0, i) if target=='label' else made(net, target=i)(x+0)
    assert i.is_inference() and torch.equal(heat, should)

def test_a_captum_method_finds_its_layer_for_each_image_size():
    "The layer of 64×64 images is not kept for those of 224×224; one that is given is"
    import timm
    net = timm.create_model('resnet10t', num_classes=4).eval()
    xs = [torch.randn(1,3,o,o) for o in (64,224)]
    layers = [find_layer(net, x).module for x in xs]
    attr = as_attribution('GuidedGradCam')(net, target='pred')
    found = []
    for x in xs: found.append(attr(x) is None or attr.layer)
    assert layers[0] is not layers[1] and found[0] is layers[0] and found[1] is layers[1]
    asked = as_attribution('GuidedGradCam')(net, layer='layer2', target='pred')
    for x in xs: assert asked(x) is None or asked.layer is net.layer2

def test_a_suspect_is_the_whole_module():
    "Also if a part of it is called `model`, as in many wrappers"
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model,self.head = small_net(n_out=8),nn.Linear(8, 2)
        def forward(self, x): return self.head(self.model(x))
    net,x = Wrapped().eval(),torch.rand(2,3,16,16)
    suspect = Suspect(net, 'GradCAM')
    assert isinstance(suspect.model, Wrapped)
    assert torch.equal(suspect(small_net(), target=1)(x), GradCAM(net, target=1)(x))

def test_smoothed_moves_labels_of_pixels():
    "A mirrored view has mirrored labels, so the heat of a mirrored image is the mirrored heat"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x,y = torch.rand(1,3,16,16),torch.zeros(1,16,16, dtype=torch.long)
    y[:,:,:5] = 1
    seen = []
    class Seen(Region):
        def fix(self, out, yb=None):
            seen.append(yb)
            return super().fix(out, yb)
    Smoothed(net, layer='3', target=Seen(1, 'label'), of='GradCAM')(x, y)
    assert torch.equal(seen[0], y) and torch.equal(seen[1], y.flip(2))
    points = torch.rand(1,3,2)
    Smoothed(small_net(), target=lambda out,yb: seen.append(yb) or out[:,0], of='GradCAM')(x, points)
    assert torch.equal(seen[-1], points) # only labels of pixels have a place in the image

def test_a_damaged_store_is_told(tmp_path):
    "A file that was cut off, or that has lost bytes, is no store: a sentence says so"
    file = HeatmapStore([1,2], torch.rand(2,7,7)).save(tmp_path/'heat.npz')
    whole = file.read_bytes()
    for n in (10, 100, len(whole)//2, len(whole)-5):
        file.write_bytes(whole[:n])
        with pytest.raises(ValueError, match='is not a heatmap store'): HeatmapStore.load(file)
    for i in range(0, len(whole), 11):
        file.write_bytes(whole[:i]+bytes([whole[i]^255])+whole[i+1:])
        with suppress(ValueError): HeatmapStore.load(file)

def test_which_targets_ask_for_labels():
    from proxy_attention.attribution.targets import asks_labels
    for o in ('label', Margin('label'), Region(of='label')): assert asks_labels(o)
    for o in ('pred', 'margin', 'finer', 3, torch.tensor([1,2]), Index(1), Margin(), Region(2), lambda out,yb: out[:,0]):
        assert not asks_labels(o)

# ---- interpretation

def fitted(path, learn=None, epochs=2, **kwargs):
    "A learner of digits below five or not, with a single output"
    files = get_image_files(path/'train').sorted()
    dls = ImageDataLoaders.from_path_func(path, files, lambda f: int(f.parent.name)>=5, valid_pct=.3, seed=1, bs=8, num_workers=0)
    learn = Learner(dls, small_net(n_out=1), loss_func=BCEWithLogitsLossFlat())
    learn.loss_func.activation,learn.loss_func.decodes = torch.sigmoid,lambda x: (x>.5).long()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2)
    return learn

@pytest.fixture(scope='module')
def sides(tmp_path_factory): return fitted(digits(tmp_path_factory.mktemp('sides')/'digits', n=80))

def test_a_single_output_has_a_prediction_and_its_probability(sides):
    "The prediction is named as the label is, and its probability is that of the predicted side"
    interp = ProxyInterpretation.from_learner(sides)
    n = len(interp.losses)
    rows = interp.decoded(range(n))
    with torch.no_grad(): p = torch.cat([sides.model.eval()(b[0]) for b in sides.dls.valid]).sigmoid()[:,0]
    assert [o[2] for o in rows]==[str(bool(o>.5)) for o in p] and {o[1] for o in rows}=={'False','True'}
    assert [o[3] for o in rows]==pytest.approx(torch.maximum(p, 1-p).tolist(), abs=1e-5)
    axs = interp.plot_where()
    assert [o.get_title() for o in axs]==[f'{k} ({v})' for k,v in zip(*np.unique([o[2] for o in rows], return_counts=True))]
    names = [o.get_title() for o in interp.compare_with(sides, k=n)[1]]
    assert names==[rows[i][2] for i in (interp.losses*0).topk(n).indices]

@pytest.mark.parametrize('ask', ['confusion_matrix','print_classification_report','most_confused'])
def test_counting_restores_the_rng_and_the_learner(trained, ask, capsys):
    "As every other pass of an interpretation"
    interp = ProxyInterpretation.from_learner(trained)
    trained.model.train()
    was,rng,py = dict(trained.__dict__),torch.get_rng_state(),random.getstate()
    getattr(interp, ask)()
    assert torch.equal(torch.get_rng_state(), rng) and random.getstate()==py and trained.model.training
    assert trained.__dict__.keys()==was.keys() and all(trained.__dict__[k] is was[k] for k in ('dl','pred','xb') if k in was)

def test_all_pictures_of_numbers_explain_the_same(few, monkeypatch):
    "`show_heats` explains the distance from the same centre as `heats`"
    import proxy_attention.interpret.interpretation as module
    files = get_image_files(few/'train').sorted()[:24]
    dls = DataBlock((ImageBlock,RegressionBlock), get_y=lambda f: float(f.parent.name), splitter=IndexSplitter(range(8))).dataloaders(
        files, bs=8, num_workers=0)
    learn = Learner(dls, small_net(n_out=1), loss_func=MSELossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
    interp,got = ProxyInterpretation.from_learner(learn),[]
    monkeypatch.setattr(module, '_show_heats', lambda imgs,heats,*args,**kwargs: got.extend(heats) or np.empty((2,8), object))
    monkeypatch.setattr(module, '_draw_labels', lambda *args: None)
    interp.show_heats(range(8))
    assert torch.equal(got[0], interp.heats(range(8)))

# ---- heats

def test_where_is_drawn_over_what_is_explained(few):
    "With `whole=False`, the picture is the view of the heatmap, a crop"
    files = get_image_files(few/'train').sorted()[:12]
    dls = ImageDataLoaders.from_path_func(few, files, lambda f: f.parent.name, bs=4, num_workers=0, item_tfms=CropPad(16))
    learn = Learner(dls, small_net(n_out=dls.c), loss_func=CrossEntropyLossFlat())
    for whole,side in ((True,32),(False,16)):
        axs = show_where(learn, files[:2], whole=whole)
        assert axs[0,0].images[0].get_array().shape[:2]==axs[1,0].images[0].get_array().shape[:2]==(side,side)
    seen = axs[0,0].images[0].get_array()
    should = np.asarray(PILImage.create(files[0]))[8:24,8:24]/255
    assert np.abs(seen-should).max()<.01

def test_a_heatmap_with_a_gradient_is_shown():
    assert show_heat(torch.rand(3,8,8), torch.rand(4,4, requires_grad=True)) is not None

# ---- labels for targets that need them

@pytest.fixture(scope='module')
def pixels(tmp_path_factory):
    "A network that predicts the classes of pixels, the files, and the masks of one class"
    bed = pixel_bed(tmp_path_factory.mktemp('pixels')/'bed', n=24, size=32)
    learn = pixel_learner(bed, widths=(4,8,8))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn,learn.dls.valid_ds.items[:4]

def test_scores_of_pixels(pixels):
    "The region of the label can be explained, and metrics of the model are refused in a sentence"
    learn,files = pixels
    masks = [torch.rand(32,32)>.5 for _ in files]
    scored = explanation_scores(learn, files, masks=masks, metrics='energy', target='label')
    assert scored.energy.between(0, 1).all()
    for kw in ({}, dict(masks=masks), dict(target='label')):
        with pytest.raises(TypeError, match='need the probability of a class of the image, and this data has a label for each pixel'):
            explanation_scores(learn, files, **kw)

def test_a_probe_explains_a_margin_of_the_label(trained):
    "Of given items, whose labels are then loaded"
    files = trained.dls.valid_ds.items[:20]
    with trained.no_bar():
        a = probe(trained, files, target=Margin('label'), areas=.1, kept=.3)
        b = probe(trained, areas=.1, kept=.3, target=Margin('label'))
    assert a.targs is not None and torch.equal(a.heat, b.heat[:20])

# ---- numbers

def test_finer_cam_of_the_prediction_stays_finer_cam(trained):
    "The looker of `proxy-explain` leaves a target that contrasts classes as it is"
    files = list(trained.dls.valid_ds.items[:4])
    finer = Looker(trained, 'FinerCAM', 'pred')(files)[1]
    assert torch.equal(finer, heat_on(trained, files, 'FinerCAM', 'pred'))
    probs,grad = Looker(trained, 'GradCAM', 'pred')(files)
    assert torch.equal(grad, heat_on(trained, files, 'GradCAM', 'pred')) and not torch.equal(finer, grad)

def test_numbers_that_go_together_count_once():
    "A network that has learned nothing is said to have learned in about one of twenty cases, however many numbers there are"
    from scipy.stats import pearsonr
    rng = np.random.default_rng(2)
    def drawn(k, n=60): return torch.from_numpy(rng.normal(size=(n,1))+.05*rng.normal(size=(n,k))).float()
    for k in (1,10): assert .03<np.mean([fit_of(drawn(k), drawn(k))[0] for _ in range(1000)])<.07
    wrong = np.mean([fit_of(*torch.from_numpy(rng.normal(size=(2,60,10))).float())[0] for _ in range(1000)])
    assert .03<wrong<.07 # numbers that have nothing to do with each other
    for _ in range(20):
        a,b = drawn(1),drawn(1)
        assert fit_of(a, b)[0]==(pearsonr(a[:,0], b[:,0], alternative='greater').pvalue<.05)
    targs = torch.from_numpy(rng.normal(size=(60,4))).float()
    assert fit_of(targs+2*torch.from_numpy(rng.normal(size=(60,4))).float(), targs)[0]
    assert fit_of(targs, targs)==(True,1.) and not fit_of(-targs, targs)[0]

@pytest.mark.parametrize('kind', [torch.float16,torch.bfloat16])
def test_pixels_are_imputed_in_full_precision(kind):
    "Sums over a large image overflow in half precision"
    torch.manual_seed(0)
    x,mask = (torch.randn(1,3,448,448)+1).to(kind),torch.rand(1,448,448)<.5
    made = impute(x, mask, noise=0)
    assert made.dtype==kind and torch.allclose(made, impute(x.float(), mask, noise=0).to(kind))

# ---- pixels

class Halves(nn.Module):
    "Predicts class 1 in the left half; in the right half class 2 if an image is bright, else class 0"
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)
    def forward(self, x):
        bright = (x.mean((1,2,3))>1).float()[:,None,None]
        left = (torch.arange(x.shape[-1])<x.shape[-1]//2).float().expand(x.shape[2:])
        return 1e-3*self.c(x) + torch.stack([(1-left)*(1-bright), left.expand(len(x), -1, -1), (1-left)*bright], 1)

def test_pixels_that_the_loss_leaves_out_do_not_count():
    "In the overlap of a class with its label, whatever is predicted there"
    x,y = torch.rand(12,3,32,32),torch.zeros(12,32,32, dtype=torch.long)
    x[6:] += 1
    y[:,:16,:16],y[:,16:,:16] = 1,255 # the lower left is left out, and predicted as class 1
    def asked(ignored):
        task = PixelLabels(['ground','left','bright'], ignored=ignored)
        return probe_pixels(Halves(), task, [(x,y)], 'GradCAM', None, 'c', (.1,), (.3,), probe_donors['alike'], 0, 'images',
                            {}, iter, label='left')
    assert asked(255).iou('left')==1 and asked(None).iou('left')==.5

def test_a_class_of_few_pixels_is_told():
    "No percentage is made of nothing"
    table = pd.DataFrame(dict(images=6, iou=.9, masked=.5, changes=[np.nan]*4, control=np.nan, carried=np.nan, to=''),
                         index=pd.MultiIndex.from_product([['dot'],['around','hot','border','look']], names=['class','kind']))
    said = ContextProbe(table, dict(dot=6), 6).verdict()
    assert 'nan' not in said and "'dot' covers too few pixels" in said
