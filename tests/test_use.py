"New images through an exported learner: odd files, odd names, odd models, broken disks; the numbers against fastai's own"
import errno, json, os, pickle, sys
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.loaders import whole_dl
from proxy_attention.attribution.methods import heat_of
from proxy_attention.interpret.use import Looker, find_images, heat_border, heat_spread, open_learner
from proxy_attention.experiment.config import number
import proxy_attention.interpret.use as use

pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(scope='module')
def model(trained, tmp_path_factory):
    f = tmp_path_factory.mktemp('model')/'model.pkl'
    trained.export(f)
    return f

@pytest.fixture(scope='module')
def resized(path, tmp_path_factory):
    "A learner that resizes, crops and normalises"
    set_seed(1)
    dls = ImageFolder(path/'train').dataloaders(item_tfms=Resize(48),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)], bs=16, num_workers=0)
    learn = Learner(dls, digits_net(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    f = tmp_path_factory.mktemp('resized')/'resized.pkl'
    learn.export(f)
    return f

@pytest.fixture
def photos(path, tmp_path):
    d = tmp_path/'photos'
    d.mkdir()
    for i,f in enumerate(sorted((path/'flipped').rglob('*.png'))[::20][:3]): shutil.copy(f, d/f'{i}.png')
    return d

def run(*args, **kwargs): return explain_images(*args, quiet=True, **kwargs)

def test_says_what_predict_says_and_shows_what_heat_on_shows(resized, photos, tmp_path):
    wide = np.zeros((40,90,3), np.uint8)
    wide[:,:40] = 255
    Image.fromarray(wide).save(photos/'wide.png')
    res = run(resized, photos, out=tmp_path/'runs', singles=False)
    learn = load_learner(resized)
    for o in res.table.itertuples():
        with learn.no_bar(): label,_,probs = learn.predict(o.file)
        assert o.pred==label and o.prob==pytest.approx(float(probs.max()), abs=1e-3)
    files = [Path(o) for o in res.table.file]
    attr = LayerCAM(learn.model, target='margin')
    heat,_ = heat_of(attr, whole_dl(learn.dls, files, size=(48,48), with_labels=False, bs=9, num_workers=0))
    assert res.table.spread.tolist()==pytest.approx(heat_spread(heat).tolist(), abs=2e-3)
    assert res.table.border.tolist()==pytest.approx(heat_border(heat).tolist(), abs=2e-3)

def test_spread_and_border_by_hand():
    heat = torch.zeros(2,100,100)
    heat[0,:10] = 1. # a stripe along the upper border
    heat[1,40:60,40:60] = 1.
    assert heat_border(heat).tolist()==pytest.approx([1,0], abs=1e-6)
    assert heat_spread(heat).tolist()==pytest.approx([.05,.02], abs=.012)
    assert heat_border(torch.ones(1,50,50)*3).item()==pytest.approx(.36, abs=1e-3)
    assert heat_spread(torch.zeros(1,4,4)).isnan().all() and heat_border(torch.zeros(1,4,4)).isnan().all()

def test_what_lies_in_the_run_folder(model, photos, tmp_path, fingerprint):
    before = fingerprint(photos)
    res = run(model, photos, out=tmp_path/'runs')
    table = pd.read_csv(res.run/'predictions.csv', dtype={'pred':str}, keep_default_na=False)
    assert len(table)==3 and table.pred.tolist()==res.table.pred.tolist() and not len(res.skipped)
    assert {o.relative_to(res.run).as_posix() for o in res.run.rglob('*.*')}=={'predictions.csv','sheet_001.png',*table.picture}
    for o in res.run.rglob('*.png'): Image.open(o).verify()
    assert fingerprint(photos)==before
    assert run(model, photos, out=tmp_path/'runs', singles=False).run!=res.run

def test_two_models_side_by_side(model, resized, photos, tmp_path):
    res = run(model, photos, against=resized, out=tmp_path/'runs')
    t = res.table
    assert (t.same_label==(t.pred==t.against_pred)).all() and t.heat_rank.between(-1,1).all() and t.heat_iou.between(0,1).all()
    twice = run(model, photos, against=model, out=tmp_path/'runs').table
    assert twice.same_label.all() and (twice.heat_rank==1).all() and (twice.heat_iou==1).all()
    assert Image.open(res.run/t.picture[0]).width>1.4*Image.open(run(model, photos, out=tmp_path/'runs').run/t.picture[0]).width

def test_odd_images(resized, model, tmp_path):
    d = tmp_path/'odd'; d.mkdir()
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20,30,3), dtype=np.uint8))
    for name,im in dict(
        grey=rgb.convert('L'), palette=rgb.convert('P'), alpha=rgb.convert('RGBA'), two=rgb.convert('1'),
        dot=rgb.resize((1,1)), line=rgb.resize((700,1)),
        deep=Image.fromarray(np.full((20,30), 40_000, np.uint16))).items(): im.save(d/f'{name}.png')
    rgb.convert('CMYK').save(d/'cmyk.jpg')
    exif = Image.Exif(); exif[274] = 6
    rgb.save(d/'turned.jpg', exif=exif)
    (d/'cut.png').write_bytes((d/'grey.png').read_bytes()[:100])
    (d/'empty.jpg').touch()
    (d/'text.png').write_text('no image')
    with pytest.warns(ProxyWarning, match='3 of 12 images were skipped'): res = run(resized, d, out=tmp_path/'runs')
    notes = {Path(o.file).stem:o.note for o in res.table.itertuples()}
    assert {Path(o).name for o in res.skipped.file}=={'cut.png','empty.jpg','text.png'} and (res.skipped.problem!='').all()
    assert pd.read_csv(res.run/'skipped.csv').file.tolist()==res.skipped.file.tolist()
    for k,word in dict(alpha='transparent', dot='tiny', line='tiny', deep='16-bit', cmyk='CMYK', turned='EXIF').items():
        assert word in notes[k], k
    assert notes['grey']==notes['palette']=='' and notes['turned'].count('EXIF')==1
    res = run(model, d, out=tmp_path/'runs') # a model without a resize: sizes differ, and it cannot take a dot
    assert len(res.table)+len(res.skipped)==12 and {'grey','alpha','turned'} <= {Path(o).stem for o in res.table.file}
    left = res.skipped[res.skipped.file.str.endswith('dot.png')]
    assert left.problem.str.startswith('the model cannot take it').all() and len(left)==1

names = [
    'a$b$c.png', '$x_{1}$ \\foo{.png', '$', 'semi;colon,comma "quote".png',
    '数字 עברית 🦊.png', 'x'*200+'.png', '.hidden.png', 'new\nline\ttab.png',
    '%s {} <b>.png', 'é́́́.png', '=1+1.png']
def test_a_model_that_returns_nan_explains_nothing(trained, photos, tmp_path):
    broken = deepcopy(trained)
    with torch.no_grad(): broken.model[-1].bias.fill_(float('nan'))
    with pytest.raises(ValueError, match='the model returns NaN, so it predicts nothing'): run(broken, photos, out=tmp_path/'runs')

def test_odd_names(model, photos, tmp_path):
    src = photos/'0.png'
    made = [tmp_path/'names'/o for o in names] + [Path(os.fsdecode(os.fsencode(tmp_path/'names')+b'/\xff\xfe.png'))]
    (tmp_path/'names').mkdir()
    for f in made: shutil.copy(src, f)
    res = run(model, made, out=tmp_path/'runs')
    assert len(res.table)==len(made) and len(set(res.table.picture))==len(made)
    again = pd.read_csv(res.run/'predictions.csv', keep_default_na=False)
    assert again.file.tolist()==res.table.file.tolist() and res.table.file[0]==str(made[0])
    for o in again.picture: Image.open(res.run/o).verify()
    json.loads(json.dumps(res.table.file.tolist()).encode('utf-8'))

def test_odd_labels(path, photos, tmp_path):
    vocab = ['$a$', '$\\frac{', 'x_1', '数', 'y'*300, '{}', '%d', 'new\nline', 'z', '🦊']
    set_seed(0)
    dls = DataBlock((ImageBlock,CategoryBlock(vocab=vocab, sort=False)), get_items=get_image_files,
        get_y=lambda f: vocab[int(f.parent.name)]).dataloaders(path/'train', bs=8, num_workers=0)
    learn = Learner(dls, digits_net())
    seen = set()
    for i in range(10):
        with torch.no_grad(): learn.model[-1].bias.copy_(torch.eye(10)[i]*50)
        res = run(learn, photos/'0.png', against=learn, out=tmp_path/'runs')
        seen |= set(res.table.pred)
        Image.open(res.run/'sheet_001.png').verify()
    assert len(seen)==10 and '$\\frac{' in seen

def test_a_learner_is_as_before(trained, photos, tmp_path, weights, same):
    before,cbs = weights(trained), sorted(o.name for o in trained.cbs)
    trained.model.train()
    trained.model[0][1].eval() # one norm that its owner has put to sleep
    torch.manual_seed(3)
    state = torch.get_rng_state()
    run(trained, photos, out=tmp_path/'runs')
    assert torch.equal(state, torch.get_rng_state()) and same(before, weights(trained)) and sorted(o.name for o in trained.cbs)==cbs
    assert trained.model.training and not trained.model[0][1].training and trained.model[0][0].training
    trained.model.train()

def test_files_folders_patterns(model, photos, tmp_path, monkeypatch):
    (photos/'deep'/'er').mkdir(parents=True)
    shutil.copy(photos/'0.png', photos/'deep'/'er'/'a.png')
    n = lambda o: len(find_images(o)[0])
    assert n(photos)==4 and n(str(photos/'*.png'))==3 and n(str(photos/'**'/'*.png'))==4 and n([photos/'0.png', photos/'*.png', photos])==4
    (photos/'[x].png').write_bytes((photos/'0.png').read_bytes())
    assert n(photos/'[x].png')==1 # a file that is there is no pattern
    monkeypatch.chdir(photos)
    assert n('0.png')==1 and n(['0.png', photos/'0.png'])==1 and find_images('0.png')[1]==[]
    with pytest.raises(FileNotFoundError, match='no image, folder or pattern nix.png'): find_images('nix.png')
    with pytest.raises(ValueError, match='No file is called'): find_images('nix*.png')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='There is no image in'): find_images(tmp_path/'empty')
    with pytest.raises(TypeError, match='3 is not a file'): find_images([3])
    with pytest.raises(ValueError, match='No image is given'): run(model, [], out=tmp_path/'runs')
    os.symlink('nowhere', photos/'broken.png')
    with pytest.raises(ValueError, match='None of the 1 images can be read'): run(model, 'broken.png', out=tmp_path/'runs')
    assert not (tmp_path/'runs').exists()

def test_nothing_is_written_among_the_images(model, photos, fingerprint):
    before = fingerprint(photos)
    for images in (photos, photos/'0.png', str(photos/'*.png')):
        with pytest.raises(ValueError, match='nothing is ever written there'): run(model, images, out=photos/'runs')
    assert fingerprint(photos)==before

def test_beside_an_image_one_can_work(model, photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert run(model, '0.png').run.parent==Path('runs')
    with pytest.raises(ValueError, match='nothing is ever written there'): run(model, '.')

def test_what_is_no_model(model, photos, tmp_path):
    torch.save(digits_net().state_dict(), tmp_path/'weights.pth')
    torch.save(digits_net(), tmp_path/'net.pth')
    with open(tmp_path/'list.pkl', 'wb') as f: pickle.dump([1,2], f)
    (tmp_path/'empty.pkl').touch()
    (tmp_path/'text.pkl').write_text('x'*100)
    (tmp_path/'noise.pkl').write_bytes(np.random.default_rng(0).bytes(3000))
    whole = model.read_bytes()
    (tmp_path/'cut.pkl').write_bytes(whole[:len(whole)//2])
    (tmp_path/'holes.pkl').write_bytes(whole[:500]+b'\0'*2000+whole[2500:])
    shutil.copy(photos/'0.png', tmp_path/'image.pkl')
    for o in ('weights.pth','net.pth','list.pkl','empty.pkl','text.pkl','noise.pkl','cut.pkl','holes.pkl','image.pkl'):
        with pytest.raises(ValueError, match='is not a learner that fastai exported'): open_learner(tmp_path/o)
    with pytest.raises(FileNotFoundError, match='There is no model'): open_learner(tmp_path/'nix.pkl')
    with pytest.raises(FileNotFoundError, match='It is not a run folder, or the run is not finished'): open_learner(tmp_path)
    os.mkfifo(tmp_path/'pipe.pkl')
    with pytest.raises(OSError, match='is neither a file nor a folder'): open_learner(tmp_path/'pipe.pkl')
    with pytest.raises(TypeError, match='The model is a int'): open_learner(3)
    with pytest.raises(TypeError, match='The model is a Sequential'): open_learner(digits_net())

@pytest.mark.parametrize('gone', ['module','name'])
def test_a_model_whose_code_is_missing(path, tmp_path, monkeypatch, gone):
    (tmp_path/'labels_of.py').write_text('def label(f): return f.parent.name')
    monkeypatch.syspath_prepend(tmp_path)
    import labels_of
    learn = Learner(
        ImageDataLoaders.from_path_func(path, get_image_files(path/'train'), labels_of.label, bs=8, num_workers=0),
        digits_net())
    learn.export(tmp_path/'m.pkl')
    if gone=='name': del labels_of.label
    else:
        monkeypatch.delitem(sys.modules, 'labels_of')
        (tmp_path/'labels_of.py').unlink()
        shutil.rmtree(tmp_path/'__pycache__', ignore_errors=True)
    with pytest.raises(ValueError, match='needs code that is missing here.*label'): open_learner(tmp_path/'m.pkl')
    sys.modules.pop('labels_of', None)

def test_models_of_other_labels(path, photos, tmp_path):
    files = get_image_files(path/'train')[:20]
    number = DataBlock((ImageBlock,RegressionBlock), get_y=lambda f: float(f.parent.name),
        get_items=lambda _: files).dataloaders(path, bs=4, num_workers=0)
    with pytest.raises(TypeError, match='does not predict labels of whole images.*`show_where`'):
        run(Learner(number, digits_net(number.c), loss_func=MSELossFlat()), photos, out=tmp_path/'runs')
    raw = DataLoaders.from_dsets([(torch.rand(3,32,32),0)]*8, [(torch.rand(3,32,32),0)]*4, bs=4, num_workers=0)
    with pytest.raises(TypeError, match='plain dataset'):
        run(Learner(raw, digits_net(), loss_func=CrossEntropyLossFlat()), photos, out=tmp_path/'runs')

def test_arguments(model, photos, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'LayerCAM'"): run(model, photos, attribution='LayerKam', out=tmp_path/'runs')
    with pytest.raises(ValueError, match='new images have none'): run(model, photos, target='label', out=tmp_path/'runs')
    with pytest.raises(ValueError, match='None of the 3 images could be explained') as e:
        run(model, photos, layer='nolayer', out=tmp_path/'runs')
    assert '..' not in str(e.value)
    for kw in (
            dict(attribution='Saliency'), dict(target='margin'), dict(target=3), dict(layer='0.0'),
            dict(attribution=lambda xb,yb: torch.rand(len(xb),4,4))):
        assert len(run(model, photos, out=tmp_path/'runs', singles=False, **kw).table)==3

def test_flat_heat_is_said(model, photos, tmp_path):
    t = run(model, photos, out=tmp_path/'runs', attribution=lambda xb,yb: torch.ones(len(xb),4,4)).table
    assert t.spread.isna().all() and t.border.isna().all() and (t.note=='no heatmap from model').all()

def test_told(model, photos, tmp_path, capsys):
    shutil.copy(photos/'0.png', photos/'9.png')
    (photos/'bad.png').touch()
    explain_images(model, photos, against=model, out=tmp_path/'runs')
    said = capsys.readouterr().out
    assert '0.png' in said and 'the models agree on 4' in said and str(tmp_path/'runs') in said
    res = explain_images(model, photos, out=tmp_path/'runs', as_json=True)
    o = json.loads(capsys.readouterr().out)
    assert (o['run']==str(res.run) and [x['pred'] for x in o['images']]==res.table.pred.tolist()
        and o['skipped'][0]['file'].endswith('bad.png'))
    explain_images(model, photos/'0.png', out=tmp_path/'runs', singles=False,
        attribution=lambda xb,yb: torch.ones(len(xb),4,4), as_json=True)
    assert json.loads(capsys.readouterr().out)['images'][0]['spread'] is None # JSON knows no NaN
    run(model, photos/'0.png', out=tmp_path/'runs')
    assert capsys.readouterr().out==''
    explain_images(model, photos/'0.png', against=model, out=tmp_path/'runs', singles=False,
        attribution=lambda xb,yb: torch.ones(len(xb),4,4))
    out = capsys.readouterr().out
    assert 'the models agree on 1 of them\n' in out and 'nan' not in out.lower()

def test_a_bar_after_two_seconds_only(monkeypatch):
    shown,now = [],[0.]
    monkeypatch.setattr(use.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(use, 'progress_bar', lambda o, **kw: shown.append(len(o)) or o)
    def go(seconds, show):
        shown.clear()
        now[0] = 0.
        res = []
        for o in use.patient(list(range(6)), show):
            res.append(o)
            now[0] += seconds
        assert res==list(range(6))
        return list(shown)
    assert go(.1, True)==[] and go(1., True)==[3] and go(1., False)==[]

def test_pages(model, photos, tmp_path):
    for i in range(3,14): shutil.copy(photos/'0.png', photos/f'{i}.png')
    (photos/'05_dot.png').write_bytes(b'')
    Image.new('RGB', (1,1)).save(photos/'00_dot.png')
    res = run(model, photos, out=tmp_path/'runs')
    assert [o.name for o in sorted(res.run.glob('sheet*'))]==['sheet_001.png','sheet_002.png']
    assert len(res.table)==14 and len(set(res.table.picture))==14 and len(res.skipped)==2

def test_ctrl_c_keeps_what_is_done(model, photos, tmp_path, monkeypatch):
    for i in range(3,14): shutil.copy(photos/'0.png', photos/f'{i}.png')
    (photos/'00.png').touch()
    look,pages = use.look_at_files,[]
    def stop(*args):
        if pages: raise KeyboardInterrupt
        pages.append(1)
        return look(*args)
    monkeypatch.setattr(use, 'look_at_files', stop)
    with pytest.raises(KeyboardInterrupt, match='12 of 14 images are done: ') as e: run(model, photos, out=tmp_path/'runs')
    o, = (tmp_path/'runs').iterdir()
    assert (str(e.value).endswith(str(o)) and len(pd.read_csv(o/'predictions.csv'))==12
        and pd.read_csv(o/'skipped.csv').file.str.endswith('00.png').all())

def test_many_files_are_checked_by_all_cores_and_without_a_bar(model, photos, tmp_path, monkeypatch):
    import proxy_attention.data.checks as data
    asked,parallel = [],data.parallel
    monkeypatch.setattr(data, 'parallel', lambda f, o, n_workers, progress: (
        asked.append((n_workers,progress)) or parallel(f, o, n_workers=0, progress=False)))
    monkeypatch.setattr(data, 'num_cpus', lambda: 7)
    monkeypatch.setattr(use, 'Looker', lambda *args: None)
    monkeypatch.setattr(use, 'look_at_files', lambda lookers, files: ([], [(f,'no') for f in files]))
    many = [photos/f'{i}.png' for i in range(2100)]
    for f in many:
        if not f.exists(): os.link(photos/'0.png', f)
    for kw in (dict(quiet=True), dict()):
        with pytest.raises(ValueError, match='could be explained'): explain_images(model, many, out=tmp_path/'runs', singles=False, **kw)
    assert asked==[(7,False),(7,True)]

def test_full_disk_and_no_permission(model, photos, tmp_path, monkeypatch):
    def full(f): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(use, 'write_picture', lambda path, fig: full(path))
    with pytest.raises(OSError, match=r'cannot be written to .*No space left on device.*free some space'):
        run(model, photos, out=tmp_path/'runs')
    monkeypatch.undo()
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='cannot be made'): run(model, photos, out=tmp_path/'file'/'runs')

def test_pictures_are_whole_or_absent(model, photos, tmp_path, monkeypatch):
    class Fail(Exception): pass
    def half(fig, f, **kw):
        f.write(b'half a picture')
        raise Fail
    monkeypatch.setattr(plt.Figure, 'savefig', half)
    with pytest.raises(Fail): run(model, photos, out=tmp_path/'runs')
    assert not [o for o in (tmp_path/'runs').rglob('*') if o.is_file()] and not plt.get_fignums()

def test_finer_cam_of_the_prediction_stays_finer_cam(trained):
    "The looker of `proxy-explain` leaves a target that contrasts classes as it is"
    files = list(trained.dls.valid_ds.items[:4])
    finer = Looker(trained, 'FinerCAM', 'pred')(files)[1]
    assert torch.equal(finer, heat_on(trained, files, 'FinerCAM', 'pred'))
    probs,grad = Looker(trained, 'GradCAM', 'pred')(files)
    assert torch.equal(grad, heat_on(trained, files, 'GradCAM', 'pred')) and not torch.equal(finer, grad)
