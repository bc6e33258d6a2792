"A run folder is complete in itself, says what state it is in, and is never unpickled unless somebody asks"
import errno, json, os, pickle, re, shutil, subprocess, sys, warnings
from types import SimpleNamespace
import pytest, warm
from fastai.vision.all import *
from safetensors.torch import save_file
from proxy_attention.all import *
from proxy_attention.cli import CliError, proxy_explain, proxy_report, proxy_runs, proxy_train
from proxy_attention.core import hold_folder, is_held, let_go
from proxy_attention.data.networks import network_file, read_network
from proxy_attention.experiment.compare import compare_folder
from proxy_attention.experiment.config import Config, changed, from_toml, to_toml
from proxy_attention.experiment.runs import finished, run_state, runs_done, runs_table
from proxy_attention.experiment.settings import check_config
from proxy_attention.experiment.sweep import folder_run
from proxy_attention.experiment.learner import largest_batch
from proxy_attention.experiment.resuming import found_again
from proxy_attention.experiment.train import last_of
from proxy_attention.interpret.use import open_learner

pytestmark = pytest.mark.limit(120)
small = dict(arch='test_resnet', pretrained=False, size=32, workers=0, say=noop)
plain = dict(recipe='none', epochs=1, **small)

@pytest.fixture(scope='module')
def made(few, tmp_path_factory):
    "A run with proxies, and one without; not to be written to"
    out = tmp_path_factory.mktemp('made')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return train_folder(few, out, steps='1,p,1', share=.5, export=True, **small), train_folder(few, out, **plain)

@pytest.fixture
def one(made, tmp_path): return Path(shutil.copytree(made[0], tmp_path/'runs'/made[0].name))

class Hostile:
    "A pickle that leaves a mark where it is loaded"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (self.mark,)

def poison(run, mark, *patterns):
    "Files of a run become pickles with code in them"
    bad = pickle.dumps(Hostile(mark))
    for f in [f for o in patterns for f in run.glob(o)] + [run/'model.pkl']: f.write_bytes(bad)
    pickle.loads(bad)
    assert mark.exists(), 'the test can fail'
    mark.unlink()

class Stops(Callback):
    "Ends a fit in an epoch, usually its second"
    def __init__(self, error=KeyboardInterrupt(), at=1): self.error,self.at = error,at
    def after_batch(self):
        if self.training and self.epoch==self.at: raise self.error

def preds(learn, files):
    with learn.no_bar(), learn.no_logging(): return learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))[0]

# The network as a file

@pytest.mark.parametrize('kw', [
    dict(), dict(augment='strong', bs=8), dict(arch='test_vit', size=160), dict(arch='xresnet18', augment='none')],
    ids=['timm body','strong','timm head','fastai'])
def test_a_run_predicts_as_the_learner_that_was_trained(few, tmp_path, monkeypatch, same, kw):
    "Bit for bit, made again from the folder alone: elsewhere, without the images"
    import proxy_attention.experiment.learner as t
    usual,made = t.arch_learner,[]
    monkeypatch.setattr(t, 'arch_learner', lambda *a: made.append(usual(*a)) or made[-1])
    data = Path(shutil.copytree(few/'train', tmp_path/'photos'))
    run = train_folder(data, tmp_path/'runs', n_per_class=4, **(plain|dict(lr=1e-2)|kw))
    files = get_image_files(few).sorted()[:40]
    want = preds(made[-1], files)
    assert want.std(0).max()>0
    shutil.rmtree(data)
    moved = Path(shutil.move(run, tmp_path/'elsewhere'))
    states = get_random_states()
    again = load_run(moved)
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else True for a,b in zip(states.values(), get_random_states().values()))
    assert torch.equal(preds(again, files), want) and same(again.model.state_dict(), made[-1].model.state_dict())
    assert list(again.dls.vocab)==list(made[-1].dls.vocab) and torch.equal(preds(load_run(moved/network_file), files), want)
    with again.no_bar(): assert again.predict(files[0])[0] in again.dls.vocab

@pytest.mark.filterwarnings('ignore:load_learner')
def test_the_export_is_only_written_if_asked(made, few):
    assert (made[0]/'model.pkl').exists() and not (made[1]/'model.pkl').exists() and all(map(finished, made))
    files = get_image_files(few)
    assert torch.equal(preds(load_learner(made[0]/'model.pkl'), files), preds(load_run(made[0]), files))

def test_what_stands_in_the_file(made):
    about,weights = read_network(made[0]/network_file)
    assert about['arch']=='test_resnet' and about['labels']==[str(i) for i in range(10)] and about['size']==[32,32]
    assert about['pretrained'] is False and about['versions']['torch']==torch.__version__.split('+')[0]
    assert set(weights)==set(load_run(made[0]).model.state_dict())

@pytest.mark.parametrize('change,says', [
    (dict(arch='resnet81'), "did you mean 'resnet18'"), (dict(arch='resnet18'), "do not fit the architecture 'resnet18' for 10 classes"),
    (dict(arch='hf-hub:evil/model'), 'has an architecture called'), (dict(arch=3), 'does not name a network'),
    (dict(labels=['a']), 'for 1 classes'), (dict(labels=[]), 'not a list of different names'),
    (dict(labels=['a','a']), 'not a list of different names'),
    (dict(size=[0,32]), 'size=0'), (dict(size=32), 'its size is 32'), (dict(mean=[1.]), 'not a mean and a standard deviation'),
    (dict(std=None), 'not a mean and a standard deviation'), (dict(std=[1.,2.,float('nan')]), 'not a mean and a standard deviation'),
    (dict(method='shrink'), "its method is 'shrink'"), (dict(augment=['x']), 'is not a network'), (dict(augment='evil'), "is 'evil'"),
    (dict(bs=0), 'bs=0'), (dict(format=9), 'its format is 9')])
def test_words_that_say_no_network_are_refused(made, tmp_path, change, says):
    about,weights = read_network(made[0]/network_file)
    save_file(weights, tmp_path/network_file, dict(learner=json.dumps(about|change)))
    with pytest.raises(ValueError, match=re.escape(says)) as e: load_run(tmp_path)
    assert str(tmp_path/network_file) in str(e.value) and str(e.value).endswith('.') and len(str(e.value).splitlines())==1

@pytest.mark.parametrize('content', [b'', b'text', pickle.dumps({}), b'\x08'+b'\0'*7+b'{}      '], ids=['empty','text','pickle','no words'])
def test_files_that_are_no_network(tmp_path, content):
    (tmp_path/network_file).write_bytes(content)
    with pytest.raises(ValueError, match='is not a network that this library saved, or it is damaged'): load_run(tmp_path)

def test_folders_without_a_network(one, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no run folder'): load_run(tmp_path/'none')
    with pytest.raises(FileNotFoundError, match='It is not a run folder, or the run is not finished'): load_run(tmp_path)
    (one/network_file).unlink()
    with pytest.raises(FileNotFoundError, match='is a pickle, and loading one runs the code in it'): open_learner(one)
    (tmp_path/'fold_0').mkdir()
    with pytest.raises(FileNotFoundError, match='It has folds: give one of them, such as .*fold_0'): load_run(tmp_path)

# Nothing is unpickled unless somebody asks

everything = ('**/*.pth','**/*.safetensors','**/*.npz')

def test_explain_takes_run_folders(made, few, tmp_path):
    res = warm.run(warm.script, 'proxy-explain', made[0], few/'plain'/'3', '--against', made[1], '--out', tmp_path/'seen')
    assert res.returncode==0 and 'the models agree on' in res.stdout, res.stderr

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_a_folder_of_pickles_runs_nothing(one, made, few, tmp_path, capsys):
    mark = tmp_path/'ran'
    seen = tmp_path/'seen'
    seen.mkdir()
    poison(one, mark) # the export alone: everything works
    proxy_explain(str(one), str(few/'plain'/'3'), against=str(one), out=str(seen))
    proxy_report(str(one), out=str(seen/'a.html'), json=True)
    assert not [o for o in json.loads(capsys.readouterr().out.splitlines()[-1])['missing'] if 'model' in o]
    proxy_train(str(few), suspect=str(one), out=str(seen), quiet=True, **{k:v for k,v in small.items() if k!='say'}, epochs=2)
    proxy_train(resume=str(one), quiet=True)
    proxy_runs(str(one))
    assert not mark.exists()
    poison(one, mark, *everything)
    for f in (lambda: proxy_explain(str(one), str(few/'plain'/'3'), out=str(seen)),
              lambda: proxy_train(str(few), suspect=str(one), out=str(seen), quiet=True, epochs=2,
                                  **{k:v for k,v in small.items() if k!='say'})):
        with pytest.raises(CliError, match='is not a network that this library saved'): f()
    proxy_report(str(one), out=str(seen/'b.html'), json=True)
    assert any('its weights are not available' in o for o in json.loads(capsys.readouterr().out.splitlines()[-1])['missing'])
    proxy_runs(str(one))
    for o in ('model.pkl',network_file): (one/o).unlink()
    with pytest.raises(CliError, match='is not a checkpoint of this library'): proxy_train(resume=str(one), quiet=True)
    assert not mark.exists()

@pytest.mark.filterwarnings('ignore:Detected pickle')
def test_a_suspect_that_is_kept_between_two_fits_is_not_unpickled(tmp_path):
    from proxy_attention.proxy.successor import _weights_in
    mark = tmp_path/'ran'
    (tmp_path/'suspect.pth').write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(ValueError, match='does not contain the weights of a suspect, or is damaged'): _weights_in(tmp_path/'suspect.pth')
    assert not mark.exists()

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning','ignore:load_learner')
def test_a_pickle_as_suspect_is_loaded_only_if_this_call_names_it(few, made, tmp_path):
    mark,bad = tmp_path/'ran',tmp_path/'stranger.pkl'
    bad.write_bytes(pickle.dumps(Hostile(mark)))
    toml = tmp_path/'config.toml'
    toml.write_text(to_toml(changed(Config(), path=few, suspect=bad, epochs=2, **{k:v for k,v in small.items() if k!='say'})))
    for f in (lambda: train_folder(config=toml, out=tmp_path/'runs', say=noop), lambda: folder_run(config=toml)):
        with pytest.raises(ValueError, match='loading one can execute any code: if you trust this file, give suspect'): f()
    res = warm.run(warm.script, 'proxy-train', '--config', toml, '--out', tmp_path/'runs')
    assert res.returncode==2 and '--suspect' in res.stderr and not mark.exists() and not (tmp_path/'runs').exists()
    with pytest.raises(ValueError, match='is not a learner that fastai exported'): # named, it is loaded: the test can fail
        train_folder(config=toml, out=tmp_path/'runs', suspect=bad, say=noop)
    assert mark.exists() and not os.listdir(tmp_path/'runs')
    toml.write_text(to_toml(changed(from_toml(toml), suspect=made[1]))) # a run folder may come from both
    run = train_folder(config=toml, out=tmp_path/'runs', say=noop)
    assert from_toml(run/'config.toml').proxy.suspect==str(made[1]/network_file)

def test_a_run_with_an_exported_suspect_is_gone_on_with_if_it_is_named_again(few, made, tmp_path, quiet):
    args = dict(small, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train_folder(few, tmp_path/'runs', suspect=made[0]/'model.pkl', recipe='shortcut', steps='1,p,1', cbs=Stops(), **args)
    run, = (tmp_path/'runs').iterdir()
    with pytest.raises(ValueError, match='loading one can execute any code'): resume_run(run, noop)
    with pytest.raises(ValueError, match='did not start with the suspect'): resume_run(run, noop, suspect=made[1])
    with pytest.raises(CliError, match='leave the other options out'): proxy_train(resume=str(run), lr=1., suspect=str(made[0]/'model.pkl'))
    proxy_train(resume=str(run), suspect=str(made[0]/'model.pkl'), quiet=True, export=True)
    assert finished(run) and (run/'model.pkl').exists()

def interrupted(path, out, **settings):
    "A run that was interrupted in its second epoch"
    with pytest.raises(KeyboardInterrupt): train_folder(path, out, cbs=Stops(), **small|dict(recipe='none', epochs=2)|settings)
    run, = out.iterdir()
    return run

def test_a_suspect_that_was_moved_is_found_or_given(few, made, tmp_path):
    "With the run it is found again; elsewhere it has to be given, and other weights are refused"
    suspect = Path(shutil.copytree(made[0], tmp_path/'a'/'suspect'))
    interrupted(few, tmp_path/'a'/'runs', suspect=suspect, swapped='rest')
    (tmp_path/'a').rename(tmp_path/'b')
    run, = (tmp_path/'b'/'runs').iterdir()
    again = Path(shutil.copytree(run, tmp_path/'c'/'run'))
    told = []
    resume_run(run, told.append)
    assert finished(run) and any(o.startswith('The suspect is read from') for o in told)
    shutil.rmtree(tmp_path/'b')
    with pytest.raises(FileNotFoundError, match='There is no model'): resume_run(again, noop)
    with pytest.raises(ValueError, match='did not start with the suspect'): resume_run(again, noop, suspect=made[1])
    assert finished(resume_run(again, noop, suspect=made[0]))

@pytest.mark.parametrize('old,new,says', [
    ('[fit]', '[fit]\nwd = 0.3', 'Wd: absent there, 0.3 here'), ('[fit]', '[fit]\nfp16 = true', 'Fp16: absent there, True here'),
    ('[fit]', '[fit]\nprune = 0.5', 'Prune: absent there, 0.5 here'), ('seed = 42', 'seed = 7', 'Seed: 42 there, 7 here')])
def test_a_run_whose_settings_were_edited_is_refused(few, tmp_path, old, new, says):
    "It would end as neither of the two runs, and its folder would say that it is the second one"
    run = interrupted(few, tmp_path/'runs')
    before,toml = (run/'checkpoints'/'last.pth').read_bytes(),(run/'config.toml').read_text()
    (run/'config.toml').write_text(toml.replace(old, new))
    with pytest.raises(ValueError, match=f'The settings of .* have changed since it started. {says}. Restore .*config.toml'):
        resume_run(run, noop)
    assert (run/'checkpoints'/'last.pth').read_bytes()==before
    (run/'config.toml').write_text(toml.replace('workers = 0', 'workers = 1')) # changes no result
    assert finished(resume_run(run, noop))

def test_what_was_moved_is_found_by_a_colon_too(few, tmp_path):
    "A colon may be part of a path, or stand between the name and the folder of a data set"
    shutil.copytree(few, tmp_path/'a'/'photos: few')
    interrupted(tmp_path/'a'/'photos: few', tmp_path/'a'/'runs')
    (tmp_path/'a').rename(tmp_path/'b')
    run, = (tmp_path/'b'/'runs').iterdir()
    assert finished(resume_run(run, noop))
    (tmp_path/'pets').mkdir()
    cfg = changed(Config(), path=f'pets:{tmp_path}/pets')
    (tmp_path/'pets').rename(tmp_path/'b'/'pets')
    assert found_again(cfg, run, noop).data.path==f'pets:{tmp_path}/b/pets'
    assert found_again(changed(cfg, path='pets'), run, noop).data.path=='pets'

def test_a_test_set_or_objects_that_changed_are_refused(few, tmp_path):
    "The result would be that of another experiment"
    test,boxes = Path(shutil.copytree(few/'valid', tmp_path/'test')),tmp_path/'boxes.csv'
    names = [o.relative_to(few) for o in get_image_files(few)]
    boxes.write_text('\n'.join(['file,x0,y0,x1,y1', *(f'{o},0,0,5,5' for o in names)]))
    run = interrupted(few, tmp_path/'runs', tests=f't={test}', recipe='rehearsed', objects=boxes)
    boxes.write_text(boxes.read_text().replace('5,5', '9,9'))
    with pytest.raises(ValueError, match='The places of objects of .* have changed'): resume_run(run, noop)
    boxes.write_text(boxes.read_text().replace('9,9', '5,5'))
    f = next(test.rglob('*.png'))
    f.rename(tmp_path/'away.png')
    with pytest.raises(ValueError, match="The test set 't' of .* has changed .* Number"): resume_run(run, noop)
    (tmp_path/'away.png').rename(f)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert finished(resume_run(run, noop))

def test_a_test_set_may_be_called_NA(few, tmp_path):
    test = shutil.copytree(few/'valid', tmp_path/'test')
    run = train_folder(few, tmp_path/'runs', tests=f'NA={test}', **plain)
    assert 0<=last_of(run)['NA.accuracy']<=1

def test_an_unreadable_image_is_told_before_its_class_is_too_small(few, tmp_path):
    "`a class has a single image` alone would not be true of a folder with two"
    for c in ('a','b'): shutil.copytree(next((few/'train').iterdir()), tmp_path/'photos'/c)
    for o in list((tmp_path/'photos'/'b').iterdir())[2:]: o.unlink()
    next((tmp_path/'photos'/'b').iterdir()).write_bytes(b'no image')
    told = []
    with pytest.raises(ValueError, match='has a single image'):
        train_folder(tmp_path/'photos', tmp_path/'runs', **plain|dict(say=told.append))
    assert any('1 unreadable and left out' in o for o in told)

def test_a_run_of_an_earlier_release_is_finished_and_is_not_unpickled(one, tmp_path, capsys):
    mark = tmp_path/'ran'
    (one/network_file).unlink()
    (one/'identity.json').unlink()
    poison(one, mark)
    assert finished(one) and run_state(one)=='finished'
    proxy_train(resume=str(one))
    assert 'is finished' in capsys.readouterr().out
    (tmp_path/'seen').mkdir()
    proxy_report(str(one), out=str(tmp_path/'seen'/'a.html'), json=True)
    said = json.loads(capsys.readouterr().out)
    assert said['pictures'] and not [o for o in said['missing'] if 'model' in o] and not mark.exists() # from its checkpoint

# What a folder says of its run

def test_identity(made, few):
    said = json.loads((made[0]/'identity.json').read_text(encoding='utf-8'))
    assert said['data']['training images']['number']==64 and said['data']['validation images']['number']==16
    n = sum(f.stat().st_size for f in get_image_files(few/'train'))+sum(f.stat().st_size for f in get_image_files(few/'valid'))
    assert sum(said['data'][k]['bytes'] for k in said['data'] if 'images' in k)==n
    assert said['config']['steps']=='1,p,1' and said['config']['path']==str(few) and said['versions']['fastai']
    assert said['device'] and said['command'] is None and len(said['digest'])==16
    assert said['digest']!=json.loads((made[1]/'identity.json').read_text(encoding='utf-8'))['digest']

def test_the_command_stands_there_without_places_of_the_machine(few, tmp_path):
    res = warm.run(warm.script, 'proxy-train', few, '--arch', 'test_resnet', '--pretrained', 'no', '--size', 32, '--workers', 0,
                   '--epochs', 1, '--recipe', 'none', f'--out={tmp_path}/runs', cwd=tmp_path)
    assert res.returncode==0, res.stderr
    run, = (tmp_path/'runs').iterdir()
    said = json.loads((run/'identity.json').read_text(encoding='utf-8'))['command']
    assert said.startswith("proxy-train .../digits --arch test_resnet") and str(tmp_path) not in said and '--out=.../runs' in said

def test_the_same_run_elsewhere_has_the_same_digest(few, made, tmp_path):
    data = shutil.copytree(few, tmp_path/'moved')
    again = train_folder(data, tmp_path/'runs', **plain)
    a,b = (json.loads((o/'identity.json').read_text(encoding='utf-8')) for o in (made[1],again))
    assert a['digest']==b['digest'] and a['config']['path']!=b['config']['path']

def test_recipe_and_warnings_are_kept(few, made, tmp_path):
    said = (made[0]/'recipe.txt').read_text(encoding='utf-8')
    assert 'masker = Masker(area_budget, swap' in said and 'share = 0.5' in said and str(made[0]) not in said and ' at 0x' not in said
    assert not (made[1]/'recipe.txt').exists() and not (made[1]/'warnings.txt').exists()
    class Warns(Callback):
        def before_fit(self): warnings.warn('two\nlines', ProxyWarning)
    before = warnings.showwarning
    with pytest.warns(ProxyWarning, match='two'): run = train_folder(few, tmp_path/'runs', cbs=Warns(), **plain)
    assert (run/'warnings.txt').read_text(encoding='utf-8').splitlines()==['ProxyWarning: two lines'] and warnings.showwarning is before

def test_a_warning_is_shown_where_it_cannot_be_written(tmp_path):
    "A full disk is warned of, and must not end the run by that"
    from proxy_attention.experiment.train import _noted
    f = tmp_path/'later'/'warnings.txt'
    with pytest.warns(ProxyWarning, match='full'), _noted(f):
        warnings.warn('full', ProxyWarning)
        f.parent.mkdir()
    assert f.read_text(encoding='utf-8')=='ProxyWarning: full\n'

def test_a_warning_that_a_full_disk_took_is_written_later(tmp_path):
    "The system reports a full disk only when the file is closed"
    from proxy_attention.experiment.train import _noted
    (f := tmp_path/'warnings.txt').symlink_to('/dev/full')
    with pytest.warns(ProxyWarning), _noted(f):
        warnings.warn('first', ProxyWarning)
        f.unlink()
        warnings.warn('second', ProxyWarning)
    assert f.read_text(encoding='utf-8').splitlines()==['ProxyWarning: first','ProxyWarning: second']

def test_records_that_cannot_be_written_leave_no_half_file(few, tmp_path, monkeypatch):
    "A disk that is full in the middle of a table"
    own,full = pd.DataFrame.to_csv,OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    def half(df, to, *args, **kwargs):
        if 'valid_loss' not in df: return own(df, to, *args, **kwargs)
        own(df.head(0), to, *args, **kwargs)
        raise full
    with monkeypatch.context() as m:
        m.setattr(pd.DataFrame, 'to_csv', half)
        with pytest.raises(OSError, match='The records cannot be written to .*free some space, and resume the run'):
            train_folder(few, tmp_path/'runs', **plain)
    run, = (tmp_path/'runs').iterdir()
    assert run_state(run)=='failed' and not (run/'history.csv').exists()
    assert finished(resume_run(run, noop)) and len(pd.read_csv(run/'history.csv'))

@pytest.mark.filterwarnings('ignore:load_learner')
def test_a_full_disk_at_the_end(few, tmp_path, monkeypatch):
    "Without its network the run has failed, and is gone on with; the export of one that is finished can be had later"
    import proxy_attention.experiment.train as t
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for what,state in dict(write_network='failed', _export='finished').items():
        with monkeypatch.context() as m:
            m.setattr(t, what, full)
            with pytest.raises(OSError, match='The model cannot be written to .*free some space, and resume the run'):
                train_folder(few, tmp_path/what, export=True, **plain)
        run, = (tmp_path/what).iterdir()
        assert run_state(run)==state and not (run/'model.pkl').exists() and not list(run.glob('*.part'))
        assert finished(resume_run(run, noop, export=True)) and (run/'model.pkl').exists()
    files = get_image_files(few)
    assert torch.equal(preds(load_learner(run/'model.pkl'), files), preds(load_run(run), files))

@pytest.fixture
def cut(few, tmp_path):
    "A CSV of images, and a run that was stopped"
    d = Path(shutil.copytree(few/'train', tmp_path/'photos'))
    files = get_image_files(d).sorted()
    pd.DataFrame(dict(file=[f.relative_to(d) for f in files], label=[f.parent.name for f in files])).to_csv(d/'labels.csv', index=False)
    with pytest.raises(KeyboardInterrupt): train_folder(d/'labels.csv', tmp_path/'runs', cbs=Stops(), **(plain|dict(epochs=2)))
    run, = (tmp_path/'runs').iterdir()
    return d,run

def test_other_images_are_refused(cut):
    "Other bytes, another label, a file that is gone; and a run whose place alone has moved goes on"
    d,run = cut
    files = get_image_files(d).sorted()
    kept = files[0].read_bytes()
    files[0].write_bytes(kept+b'more')
    with pytest.raises(ValueError, match='The images of .* have changed since it started.*bytes: '): resume_run(run, noop)
    assert run_state(run)=='stopped'
    files[0].write_bytes(kept)
    table = (d/'labels.csv').read_text()
    (d/'labels.csv').write_text(table.replace(',0\n', ',7\n', 1))
    with pytest.raises(ValueError, match='a different label in'): resume_run(run, noop)
    (d/'labels.csv').write_text(table)
    (run/'identity.json').write_text('{')
    with pytest.raises(ValueError, match='cannot be read: restore it'): resume_run(run, noop)

def test_a_place_that_has_moved_is_no_other_run(cut, tmp_path):
    d,run = cut
    (tmp_path/'new').mkdir()
    for o in (d,run.parent): shutil.move(o, tmp_path/'new'/o.name)
    assert finished(resume_run(tmp_path/'new'/'runs'/run.name, noop))

# States

def state_of(run): return read_runs(run.parent).set_index('run').state[run.name]

def test_stopped_running_failed_finished(few, tmp_path):
    seen = []
    class Look(Callback):
        def after_epoch(self): seen.append(state_of(next((tmp_path/'runs').iterdir())))
    with pytest.raises(KeyboardInterrupt): train_folder(few, tmp_path/'runs', cbs=[Stops(), Look()], **(plain|dict(epochs=2)))
    run, = (tmp_path/'runs').iterdir()
    assert seen==['running'] and state_of(run)=='stopped' and 'stopped' in runs_table(run.parent)
    with pytest.warns(ProxyWarning, match='The callback stops'), pytest.raises(ZeroDivisionError):
        resume_run(run, noop, Stops(ZeroDivisionError('by zero')))
    assert state_of(run)=='failed' and (run/'failed.txt').read_text()=='ZeroDivisionError: by zero\n'
    resume_run(run, noop)
    assert state_of(run)=='finished' and not (run/'failed.txt').exists() and not is_held(run)
    assert json.loads(runs_table(run.parent, as_json=True))[0]['state']=='finished'

def test_killed_is_stopped(few, tmp_path):
    with warm.begin(warm.script, 'proxy-train', few, '--arch', 'test_resnet', '--pretrained', 'no', '--size', 32, '--workers', 0,
                    '--epochs', 50, '--recipe', 'none', '--out', tmp_path/'runs', out=tmp_path) as p:
        while 'Epoch 2/' not in (tmp_path/'stdout').read_text(encoding='utf-8') if (tmp_path/'stdout').exists() else True:
            assert p.is_alive()
            time.sleep(.02)
        run, = (tmp_path/'runs').iterdir()
        assert state_of(run)=='running'
        with pytest.raises(FileExistsError, match='Another process is training with the folder'): resume_run(run, noop)
        p.kill(); p.join()
    assert state_of(run)=='stopped'

@pytest.mark.parametrize('kw,error', [
    (dict(arch='alexnet', size=8), ValueError), (dict(cbs=Stops(ZeroDivisionError('by zero'), 0)), ZeroDivisionError)],
    ids=['start','first epoch'])
def test_what_fails_before_an_epoch_is_done_leaves_no_folder(few, tmp_path, kw, error):
    with pytest.raises(error): train_folder(few, tmp_path/'runs', **(plain|kw))
    assert not os.listdir(tmp_path/'runs')

def test_a_ctrl_c_in_the_first_epoch_leaves_a_run_to_go_on_with(few, tmp_path):
    with pytest.raises(KeyboardInterrupt): train_folder(few, tmp_path/'runs', cbs=Stops(at=0), **plain)
    run, = (tmp_path/'runs').iterdir()
    assert run_state(run)=='stopped' and finished(resume_run(run, noop))

def test_folds_and_their_mean(path, tmp_path):
    kw = plain|dict(folds=2, bs=16)
    run = train_folder(path/'valid', tmp_path/'runs', **kw)
    df = read_runs(tmp_path/'runs')
    res = pd.read_csv(run/'folds_result.csv')
    assert df.run.tolist()==[run.name, f'{run.name}/fold_0', f'{run.name}/fold_1'] and set(df.state)=={'finished'}
    assert df.accuracy.tolist()==[res.accuracy.mean(), *res.accuracy] and df.valid_loss[0]==pytest.approx(res.valid_loss.mean())
    with pytest.raises(FileNotFoundError, match='It has folds'): load_run(run)
    assert list(load_run(run/'fold_1').dls.vocab)==[str(i) for i in range(10)]
    for o in ('folds_result.csv',f'fold_1/{network_file}','fold_1/history.csv'): (run/o).unlink()
    df = read_runs(tmp_path/'runs').set_index('run')
    assert df.state.tolist()==['stopped','finished','stopped'] and df.accuracy[run.name]==res.accuracy[0]

def compared(few, tmp_path, seeds=2, **kw):
    return compare_folder(few, 'no proxy,cutout', seeds, out=tmp_path/'runs', epochs=2, n_per_class=4, **(small|kw))

@pytest.fixture
def stops(monkeypatch):
    "A comparison ends in the training after the first `n`; what was seen at each"
    import proxy_attention.experiment.compare as c
    usual = c.run_arm
    def f(n, look, error=KeyboardInterrupt()):
        seen = []
        def one(*args, **kwargs):
            seen.append(look())
            if len(seen)>n: raise error
            return usual(*args, **kwargs)
        monkeypatch.setattr(c, 'run_arm', one)
        return seen
    return f

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_how_far_a_comparison_is(few, tmp_path, stops):
    "Of so many trainings; a verdict is not that of what was added to it"
    look = lambda: [(state_of(o),runs_done(o)) for o in (tmp_path/'runs').iterdir()][0]
    seen = stops(1, lambda: [*look(), is_held(next((tmp_path/'runs').iterdir()))])
    with pytest.raises(KeyboardInterrupt, match='Resume with: proxy-compare --resume .*compare_'): compared(few, tmp_path)
    run, = (tmp_path/'runs').iterdir()
    assert seen==[['running',(0,4),True],['running',(1,4),True]] and look()==('stopped',(1,4)) and 'stopped 1/4' in runs_table(run.parent)
    stops(9, look)
    compare_folder(resume=run, say=noop)
    assert look()==('finished',(4,4)) and re.search(r'finished +test_resnet', runs_table(run.parent)) and not is_held(run)
    said = json.loads(runs_table(run.parent, as_json=True))[0]
    assert (said['state'],said['runs_done'],said['runs_asked'])==('finished',4,4)
    stops(1, look, ZeroDivisionError('by zero'))
    with pytest.raises(ZeroDivisionError): compare_folder(resume=run, seeds=3, say=noop)
    assert look()==('failed',(5,6)) and (run/'failed.txt').read_text()=='ZeroDivisionError: by zero\n' and finished(run)
    (run/'records'/'cutout_0.json').write_text('{')
    assert runs_done(run)==(4,6), 'what is damaged is not done'
    (run/'records'/'cutout_0.json').write_text('[]')
    assert runs_done(run)==(4,6)
    (run/'records'/'cutout_0.json').unlink()
    stops(9, look)
    compare_folder(resume=run, tests=f'plain={few}/plain', say=noop)
    assert look()==('finished',(6,6)) and not (run/'failed.txt').exists()
    rec = json.loads((run/'records'/'cutout_1.json').read_text())
    (run/'records'/'cutout_1.json').write_text(json.dumps(rec|dict(tests={'valid':rec['tests']['valid']})))
    assert look()==('stopped',(5,6)), 'a test set is missing'

def test_two_processes_share_a_comparison(few, tmp_path):
    "A second one is not refused; who has begun it may be gone before the other one is done"
    run = compared(few, tmp_path, 1)
    code = ('import sys,time; from filelock import FileLock; locks = [FileLock(o) for o in sys.argv[1:]]; '
            '[o.acquire() for o in locks]; print("held", flush=True); time.sleep(60)')
    def other(*locks):
        p = subprocess.Popen([sys.executable, '-c', code, *locks], stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline()=='held\n'
        return p
    p = other(run/'.lock')
    assert state_of(run)=='running'
    assert compare_folder(resume=run, seeds=2, say=noop)==run and runs_done(run)==(4,4)
    assert is_held(run) and state_of(run)=='running', 'what another process holds is left alone'
    p.kill(); p.wait()
    assert state_of(run)=='finished'
    p = other(run/'records'/'no_proxy_0.json.lock')
    assert not is_held(run) and state_of(run)=='running'
    p.kill(); p.wait()
    assert state_of(run)=='finished'

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_what_a_comparison_was(few, tmp_path):
    "Data, arms, releases; elsewhere the same digest, with another arm another one; it is not written over by what is refused"
    (tmp_path/'a').mkdir()
    run = compared(few, tmp_path, 1, tests=f'plain={few}/plain')
    said = json.loads((run/'identity.json').read_text(encoding='utf-8'))
    assert set(said['arms'])=={'no proxy','cutout'} and said['seeds']==1 and said['tests']['plain']['number']>0
    assert said['config']['size']==32 and said['versions']['fastai'] and said['command'] is None and len(said['digest'])==16
    data = shutil.copytree(few, tmp_path/'moved')
    there = compared(data, tmp_path/'a', 1, tests=f'plain={data}/plain')
    again = json.loads((there/'identity.json').read_text(encoding='utf-8'))
    assert again['digest']==said['digest'] and again['config']['path']!=said['config']['path']
    compare_folder(resume=there, arms='late', say=noop)
    more = json.loads((there/'identity.json').read_text(encoding='utf-8'))
    assert list(more['arms'])==['no proxy','cutout','late'] and more['digest']!=said['digest'] and more['data']==said['data']
    before = {f:f.read_bytes() for f in there.rglob('*') if f.is_file()}
    f = data/pd.read_csv(there/'folds.csv').file[0]
    f.write_bytes(f.read_bytes()+b' ')
    with pytest.raises(ValueError, match='contains another comparison. (Training|Validation) images, bytes: .*Restore it, or begin'):
        compare_folder(resume=there, seeds=2, say=noop)
    assert {f:f.read_bytes() for f in there.rglob('*') if f.is_file()}==before

def test_what_a_comparison_warned_of(few, tmp_path, stops):
    stops(9, lambda: warnings.warn('odd\nimages', ProxyWarning))
    with pytest.warns(ProxyWarning, match='odd'): run = compared(few, tmp_path, 1)
    assert set((run/'warnings.txt').read_text(encoding='utf-8').splitlines())=={'ProxyWarning: odd images'}

def test_logs_and_comparisons_of_earlier_releases_have_no_state(tmp_path):
    assert run_state(tmp_path) is None and runs_done(tmp_path) is None
    for o in ('config.toml','asked.json'): (tmp_path/o).touch()
    assert run_state(tmp_path) is None
    (tmp_path/'verdict.txt').touch()
    assert run_state(tmp_path)=='finished'

def test_a_folder_is_held_by_one_process(tmp_path):
    code = ('import sys,time; from proxy_attention.core import hold_folder; lock = hold_folder(sys.argv[1]); '
            'print("held", flush=True); time.sleep(30)')
    other = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline()=='held\n' and is_held(tmp_path)
    with pytest.raises(FileExistsError, match='Another process is training with the folder'): hold_folder(tmp_path)
    other.kill()
    other.wait()
    a,b = hold_folder(tmp_path),hold_folder(tmp_path) # who is killed lets go, and one process may hold it twice
    assert a is b and is_held(tmp_path)
    let_go(tmp_path)
    assert not is_held(tmp_path) and not is_held(tmp_path/'none')

# Memory, and a sentence

def test_the_batch_that_is_tried_is_trained_with(few):
    "Adam keeps two numbers per weight, of all weights, and they are memory too"
    pytest.importorskip('accelerate')
    made = []
    def make(bs):
        learn = digits_learner(few, bs=bs)
        learn.freeze()
        made.append(learn)
        return learn
    assert largest_batch(make, 8)==8
    learn, = made
    state = [learn.opt.state[p] for p in learn.model.parameters() if p.requires_grad]
    assert len(state)==len(list(learn.model.parameters())) and all('sqr_avg' in o for o in state)

def test_a_method_that_does_not_fit_says_so_in_a_sentence(made, few, tmp_path):
    with pytest.raises(CliError) as e: proxy_explain(str(made[0]), str(few/'plain'/'3'), attribution='LeGrad', out=str(tmp_path))
    assert 'choose a CAM, such as LayerCAM. The skipped images are listed in' in str(e.value)

# Before the training

def test_an_image_of_one_pixel_is_refused_before_it_is_read(tmp_path):
    "fastai's augmentations would divide by zero, after all images have been read"
    cfg = changed(Config(), size=1)
    with pytest.raises(ValueError, match='size=1 should be 2 or more: .* one pixel cannot be augmented'): check_config(cfg)
    aug = setup_aug_tfms(aug_transforms(size=2, p_affine=1., p_lighting=1.))
    assert compose_tfms(TensorImage(torch.rand(2,3,9,9)), aug, split_idx=0).shape[-2:]==(2,2)

def test_the_time_to_check_images_again_grows_with_their_number(tmp_path, monkeypatch):
    "How often a name is looked up, for each file; half of the files were checked before"
    import proxy_attention.experiment.inputs as module
    looked = Counter()
    class Named(str):
        def __hash__(self):
            looked[n] += 1
            return super().__hash__()
    monkeypatch.setattr(module, 'check_images', lambda files, workers: pd.DataFrame(
        [(f,'transparent','it is') for f in files], columns=['file','problem','detail']))
    for n in (50,400):
        files = [Named(tmp_path/f'{i}.png') for i in range(n)]
        pd.DataFrame([(f'{i}.png', '', 'unreadable' if i==4 else '', '') for i in range(0, n, 2)]
            + [('1.png','7','','')], columns=module._checked).to_csv(tmp_path/'checked.csv', index=False)
        images = SimpleNamespace(df=SimpleNamespace(file=files), _names=lambda: [Path(f).name for f in files])
        wrong = module._check_again(images, tmp_path, 0)
        assert wrong.file.tolist()==[f for i,f in enumerate(files) if i%2 or i==4], 'in their order; those that are gone have no size'
        assert Counter(wrong.problem)==dict(unreadable=1, transparent=n//2)
    assert looked[400]<12*looked[50], 'eight times as many files'
