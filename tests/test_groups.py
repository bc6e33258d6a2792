"Data sets with known groups, on folders of exactly their layout: what is read, what is refused, and that only tests know the groups"
import warnings
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.digits import digits_net
from proxy_attention.data.groups import *
from proxy_attention.data.groups import _draw_parts
from proxy_attention.core import takes
from proxy_attention.data.images import ImageSet

def put(top, *names, mode='RGB', size=(8,8)):
    "Small images, each of its own grey"
    for i,o in enumerate(names):
        f = Path(top)/o
        f.parent.mkdir(parents=True, exist_ok=True)
        img = Image.new('L', size, 20*i%256)
        (img.convert('I').convert('I;16') if mode=='I;16' else img.convert(mode)).save(f)
    return Path(top)

# Waterbirds

birds_of = {0:'015.Lazuli_Bunting', 1:'001.Black_footed_Albatross'}

def bird_rows(n=2):
    "img_id, img_filename, y, split, place, place_filename; `n` images of each group in each part"
    rows = [(split,y,place) for split in range(3) for y in (0,1) for place in (0,1) for _ in range(n)]
    return [(i+1, f'{birds_of[y]}/bird_{i:03}.jpg', y, split, place, f'/f/forest/{i:08}.jpg') for i,(split,y,place) in enumerate(rows)]

def bird_csv(top, rows, change=lambda t: t):
    head = 'img_id,img_filename,y,split,place,place_filename\n'
    (top/'metadata.csv').write_text(change(head+''.join(','.join(map(str, o))+'\n' for o in rows)))

@pytest.fixture
def birds(tmp_path):
    top,rows = tmp_path/'waterbird_complete95_forest2water2', bird_rows()
    put(top, *(o[1] for o in rows))
    bird_csv(top, rows)
    return top

def test_waterbirds(birds):
    g = waterbirds(birds)
    names = ['landbird, land','landbird, water','waterbird, land','waterbird, water']
    assert list(g.counts())==['train','valid','test']
    assert g.counts().to_dict()=={o:dict.fromkeys(names, 2) for o in ('train','valid','test')}
    assert list(g.table)==['file','part','label','place','group'] and len(g.table)==24
    for o,row in zip(g.table.itertuples(), bird_rows()): # each row says what the CSV says
        assert o.file==row[1] and o.part==('train','valid','test')[row[3]]
        assert o.label==('landbird','waterbird')[row[2]] and o.place==('land','water')[row[4]]
        assert o.group==f'{o.label}, {o.place}'
    assert waterbirds(birds.parent).table.equals(g.table) # the folder above will do

def test_training_knows_no_group(birds):
    g = waterbirds(birds)
    assert isinstance(g.images, ImageSet) and set(g.images.df)=={'file','label','part'}
    assert g.images.path==birds.resolve() and g.images.given
    of = g.table.set_index('file')
    for o in g.images.df.itertuples():
        row = of.loc[o.file.relative_to(g.path).as_posix()]
        assert row.part==o.part and row.label==o.label
    assert len(g.images)==(of.part!='test').sum()==16

def test_tests_hold_the_test_images_of_a_group_each(birds):
    g = waterbirds(birds)
    tests = g.tests()
    for k,o in tests.items():
        assert list(o)==['file','label'] and list(o.index)==[0,1]
        rows = g.table[(g.table.group==k)&(g.table.part=='test')]
        assert o.file.tolist()==rows.file.tolist() and o.label.tolist()==rows.label.tolist()
    assert set(pd.concat(tests.values()).file)==set(g.table.file[g.table.part=='test']) and len(pd.concat(tests.values()))==8
    assert {k:len(o) for k,o in g.tests('place').items()}==dict(land=4, water=4)
    assert {k:len(o) for k,o in g.tests('part').items()}==dict(test=8)
    valid = g.table[(g.table.part=='valid')&(g.table.group=='waterbird, land')]
    assert g.tests(part='valid')['waterbird, land'].file.tolist()==valid.file.tolist()
    assert '8 training and 8 validation images, 2 classes; 8 test images in 4 test sets: landbird, land' in repr(g)

@pytest.mark.parametrize('kwargs,words', [
    (dict(by='plaec'), "no column 'plaec', did you mean 'place'"), (dict(by=3), 'no column 3'),
    (dict(part='tset'), "No part is called 'tset', did you mean 'test'"), (dict(part=None), 'No part is called None')])
def test_other_tests_are_refused(birds, kwargs, words):
    with pytest.raises(ValueError, match=words): waterbirds(birds).tests(**kwargs)

def test_kwargs_go_to_the_images_and_leave_the_tests_whole(birds):
    g = waterbirds(birds, n_per_class=1, seed=3)
    assert g.counts().sum().to_dict()==dict(train=2, valid=2, test=8) and len(g.images)==4
    assert set(g.table.file[g.table.part!='test'])=={o.relative_to(g.path).as_posix() for o in g.images.df.file}
    with pytest.raises(TypeError, match='seeed'): waterbirds(birds, seeed=3)

@pytest.mark.parametrize('change,error,words', [
    (lambda t: t.replace('bird_003','bird_300').replace('bird_020','bird_200'), FileNotFoundError,
     r'2 of 24 listed images are not in .*, the first is 015.Lazuli_Bunting/bird_300.jpg: unpack the dataset again'),
    (lambda t: t.replace('bird_001.jpg,0,0,0','bird_001.jpg,0,7,0'), ValueError,
     "'7' in row 3 of .*metadata.csv, column 'split', should be one of 0, 1, 2"),
    (lambda t: t.replace('bird_001.jpg,0,0,0','bird_001.jpg,0,,0'), ValueError, "'' in row 3 of .*column 'split'"),
    (lambda t: t.replace('bird_001.jpg,0,0,0','bird_001.jpg,0,,0').replace('\n','\n\n',1), ValueError, "'' in row 4 of .*column 'split'"),
    (lambda t: t.replace('bird_000.jpg,0','bird_000.jpg,2'), ValueError, "'2' in row 2 of .*column 'y', should be one of 0, 1"),
    (lambda t: t.replace('bird_023.jpg,1,2,1','bird_023.jpg,1,2,9'), ValueError, "'9' in row 25 of .*column 'place'"),
    (lambda t: t.replace('split','spilt'), ValueError, "has no column 'split', did you mean 'spilt'"),
    (lambda t: t.replace('bird_001.jpg','bird_000.jpg'), ValueError,
     '1 files of .* are listed twice, the first is 015.Lazuli_Bunting/bird_000.jpg'),
    (lambda t: '', ValueError, 'cannot be read as a table'),
    (lambda t: t.partition('\n')[0], ValueError, 'has no rows')])
def test_a_wrong_table_is_a_sentence(birds, change, error, words):
    bird_csv(birds, bird_rows(), change)
    with pytest.raises(error, match=words): waterbirds(birds)

@pytest.mark.parametrize('part,words', [(0,"'train': there is nothing to train on"), (1,"'valid': there is nothing to validate on"),
                                        (2,"'test': there is nothing to test on")])
def test_an_empty_part_is_a_sentence(birds, part, words):
    bird_csv(birds, [o for o in bird_rows() if o[3]!=part])
    with pytest.raises(ValueError, match=f'No image of .* is in the part {words}'): waterbirds(birds)

def test_a_class_that_is_only_tested_is_refused(birds):
    bird_csv(birds, [o for o in bird_rows() if not (o[2]==1 and o[3]<2)])
    with pytest.raises(ValueError, match="class 'waterbird' of .* is in the test part but not in training"): waterbirds(birds)

def test_wrong_folders(birds, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere: .waterbirds. looks like `metadata.csv'):
        waterbirds(tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    for o in grouped:
        with pytest.raises(ValueError, match=f"does not look like '{o}'. '{o}' looks like .* nothing like that is there"):
            grouped_data(o, tmp_path/'empty')
    shutil.copytree(birds, tmp_path/'again')
    with pytest.raises(ValueError, match="holds 'waterbirds' 2 times"): waterbirds(tmp_path)
    (birds/'metadata.csv').unlink()
    with pytest.raises(ValueError, match='nothing like that is there'): waterbirds(birds)
    (tmp_path/'birds.tar.gz').write_bytes(b'')
    with pytest.raises(ValueError, match='is an archive: unpack it'): waterbirds(tmp_path/'birds.tar.gz')
    with pytest.raises(TypeError): waterbirds(None)

def test_nothing_is_written(birds, fingerprint):
    before = fingerprint(birds)
    g = waterbirds(birds)
    g.counts(), g.tests(), repr(g)
    assert fingerprint(birds)==before

def learner(g, seed=0):
    set_seed(seed)
    dls = g.images.dataloaders(bs=4, num_workers=0, item_tfms=Resize(8))
    return Learner(dls, digits_net(dls.c), metrics=accuracy)

def test_images_of_odd_kinds_are_served(birds):
    rows = bird_rows()
    for i,(mode,end) in enumerate([('L','jpg'),('CMYK','jpg'),('RGBA','png'),('I;16','png'),('P','png'),('LA','png'),('RGB','jpg')]):
        for k in (i,16+i): # one of training, one of test
            rows[k] = (k, rows[k][1].replace('jpg', end), *rows[k][2:])
            put(birds, rows[k][1], mode=mode, size=(1,1) if mode=='RGB' else (9,5))
    bird_csv(birds, rows)
    learn = learner(g := waterbirds(birds))
    seen = [x.shape[1:] for dl in (learn.dls.train, learn.dls.valid, *(learn.dls.test_dl(o, with_labels=True) for o in g.tests().values()))
            for x,_ in dl]
    assert set(seen)=={(3,8,8)} and g.table.file.str.endswith('.png').sum()==8

def test_a_file_that_is_no_image_is_named(birds):
    g = waterbirds(birds)
    (birds/g.table.file.iloc[-1]).write_bytes(b'no image')
    wrong = check_images([birds/o for o in waterbirds(birds).table.file], n_workers=0)
    assert wrong.problem.tolist()==['unreadable'] and wrong.file[0]==birds/g.table.file.iloc[-1]

def test_compare_takes_the_tests_as_they_are(birds):
    g = waterbirds(birds)
    def train(learn, epochs, lr): learn.fit(1, 0.)
    def always(learn, epochs, lr):
        learn.fit(1, 0.)
        learn.model[-1].weight.data.zero_()
        learn.model[-1].bias.data = tensor([0.,1.]) # waterbird, whatever is shown
    cmp = compare(lambda seed: learner(g, seed), dict(plain=train, always=always), seeds=1, epochs=2,
                  test_dls=g.tests()|g.tests('part'), baseline='plain', bar=False)
    acc = cmp.df[cmp.df.arm=='always'].set_index('test')
    assert acc.accuracy.to_dict()=={'landbird, land':0, 'landbird, water':0, 'waterbird, land':1, 'waterbird, water':1, 'test':.5}
    assert acc.n.to_dict()=={**dict.fromkeys(g.tests(), 2), 'test':8}
    assert cmp.stats().query("arm=='always' and test=='worst group'")['mean'].item()==0

# any table

def rows_of(**cols):
    return pd.DataFrame(dict(file=[f'{i}.png' for i in range(6)], part=['train','valid','test']*2, label=list('aaabbb'))|cols)

def test_groups_of_no_attribute_and_of_two(tmp_path):
    put(tmp_path, *(f'{i}.png' for i in range(6)))
    assert Grouped(tmp_path, rows_of()).table.group.tolist()==list('aaabbb')
    g = Grouped(tmp_path, rows_of(x=list('pqpqpq'), y=list('rrrsss')), ['x','y'])
    assert g.table.group[0]=='a, p, r' and list(g.table)==['file','part','label','x','y','group'] and g.attributes==['x','y']
    g = Grouped(tmp_path, rows_of(x=list('pqpqpq'), group=list('uuuvvv')), ['x'], by='x')
    assert list(g.tests())==['p','q'] and list(g.counts().index)==['u','v']

def test_unknown_parts_are_refused(tmp_path):
    put(tmp_path, *(f'{i}.png' for i in range(6)))
    for draw,odd,words in ((False,'val','train, valid, test'), (True,'valid','train, test'), (False,None,'train, valid, test')):
        df = rows_of(part=['train','train' if draw else 'valid','test','train',odd,'test'])
        with pytest.raises(ValueError, match=f'1 images of .* are in none of the parts {words}: the first is 4.png, in .?{odd or "nan"}'):
            Grouped(tmp_path, df, draw=draw)

def test_validation_is_drawn_where_none_is_published(tmp_path):
    names = [f'{c}{i}.png' for c in 'ab' for i in range(10)]
    put(tmp_path, *names)
    df = pd.DataFrame(dict(file=names, part=(['train']*8+['test']*2)*2, label=[o[0] for o in names]))
    one,same,other = (Grouped(tmp_path, df, draw=True, valid_pct=.25, seed=o).table for o in (1,1,2))
    assert one.part.value_counts().to_dict()==dict(train=12, valid=4, test=4) and one.equals(same) and not one.equals(other)
    assert (one.part=='test').tolist()==(df.part=='test').tolist() and (one[one.part=='valid'].groupby('label').size()==2).all()
    assert df.part.isin(['train','test']).all() # what was given is as it was

# CelebA

def face_lists(top, end='.txt', folder='img_align_celeba', names=None, header='Blond_Hair Male Young'):
    names = names or [f'{i+1:06}.jpg' for i in range(12)]
    put(top/folder, *names)
    values = [(1-2*(i%2), 1-2*(i//2%2), 1) for i in range(12)]
    sep,after = (',','') if end=='.csv' else (' ','12\n')
    head = 'image_id,'+header.replace(' ',',') if end=='.csv' else after+header+' ' # the published list ends its names with a space
    (top/f'list_attr_celeba{end}').write_text(head+'\n'+''.join(sep.join(map(str, (o,*v)))+'\n' for o,v in zip(names, values)))
    (top/f'list_eval_partition{end}').write_text(
        ('image_id,partition\n' if end=='.csv' else '')+''.join(f'{o}{sep}{i//4}\n' for i,o in enumerate(names)))
    return top

@pytest.mark.parametrize('end', ['.txt','.csv'])
@pytest.mark.parametrize('folder', ['img_align_celeba','img_align_celeba/img_align_celeba'])
def test_celeba(tmp_path, end, folder):
    g = celeba(face_lists(tmp_path, end, folder))
    assert g.table.file[0]==f'{folder}/000001.jpg' and list(g.table)==['file','part','label','Male','group']
    assert g.table.label.tolist()==['Blond_Hair','not Blond_Hair']*6 and g.table.Male.tolist()==(['Male']*2+['not Male']*2)*3
    assert g.table.part.tolist()==['train']*4+['valid']*4+['test']*4
    assert list(g.tests())==['Blond_Hair, Male','Blond_Hair, not Male','not Blond_Hair, Male','not Blond_Hair, not Male']

def test_celeba_by_other_attributes(tmp_path):
    g = celeba(face_lists(tmp_path), 'Male', ['Young','Blond_Hair'])
    assert set(g.table.label)=={'Male','not Male'} and g.table.group[0]=='Male, Young, Blond_Hair' and g.attributes==['Young','Blond_Hair']
    for label,attributes in (('Male','Male'), ('Male',['Young','Young']), (3,'Male'), ('Male',[2])):
        with pytest.raises(ValueError, match='should be names of different attributes'): celeba(tmp_path, label, attributes)
    for kwargs in (dict(label='Blond'), dict(attributes='Blond')):
        with pytest.raises(ValueError, match="list_attr_celeba.txt has no column 'Blond', did you mean 'Blond_Hair'"):
            celeba(tmp_path, **kwargs)

@pytest.mark.parametrize('name,change,words', [
    ('list_attr_celeba', lambda t: t.replace('000002.jpg -1','000002.jpg 5'),
     "'5' in row 4 of .*, column 'Blond_Hair', should be one of 1, -1"),
    ('list_attr_celeba', lambda t: t.replace('000002.jpg -1','000002.jpg'), 'Line 4 of .* has 3 fields but should have 4'),
    ('list_attr_celeba', lambda t: t.replace('000012.jpg -1 -1 1\n',''), '1 images are in only one of .*, the first is 000012.jpg'),
    ('list_eval_partition', lambda t: t.replace('000012.jpg 2\n',''), '1 images are in only one of .*, the first is 000012.jpg'),
    ('list_attr_celeba', lambda t: '12\n', 'has no rows'),
    ('list_eval_partition', lambda t: '', 'has no rows'),
    ('list_eval_partition', lambda t: t.replace('000001.jpg 0','000001.jpg 4'), "'4' in row 1 of .*, column 'partition'"),
    ('list_eval_partition', lambda t: t.replace(' 1',' 2'), "in the part 'valid': there is nothing to validate on")])
def test_celeba_refuses_lists(tmp_path, name, change, words):
    f = face_lists(tmp_path)/f'{name}.txt'
    assert change(f.read_text())!=f.read_text()
    f.write_text(change(f.read_text()))
    with pytest.raises(ValueError, match=words): celeba(tmp_path)

def test_celeba_names_what_is_missing(tmp_path):
    (face_lists(tmp_path)/'list_eval_partition.txt').unlink()
    with pytest.raises(FileNotFoundError, match='has neither list_eval_partition.csv nor list_eval_partition.txt'): celeba(tmp_path)
    shutil.rmtree(face_lists(tmp_path)/'img_align_celeba')
    (tmp_path/'img_align_celeba').mkdir()
    with pytest.raises(FileNotFoundError, match='12 of 12 listed images are not in .*000001.jpg'): celeba(tmp_path)

# MetaShift

in_out = ('train/cat/cat(indoor)','train/dog/dog(outdoor)','test/cat/cat(outdoor)','test/dog/dog(indoor)')

def test_metashift_as_the_folders_lie(tmp_path):
    put(tmp_path/'MetaShift-Cat-Dog-indoor-outdoor', *(f'{d}/{10*k+i}.jpg' for k,d in enumerate(in_out) for i in range(10)))
    g = metashift(tmp_path)
    assert g.counts().to_dict('index')=={
        'cat, indoor':dict(train=8, valid=2, test=0), 'cat, outdoor':dict(train=0, valid=0, test=10),
        'dog, indoor':dict(train=0, valid=0, test=10), 'dog, outdoor':dict(train=8, valid=2, test=0)}
    assert list(g.tests())==['cat, outdoor','dog, indoor'] and list(g.table)==['file','part','label','context','group']
    for o in g.table.itertuples():
        assert f'/{o.label}/{o.label}({o.context})/' in o.file and (o.part=='test')==o.file.startswith('test/')

def test_metashift_parted_as_in_subpopbench(tmp_path):
    put(tmp_path, *(f'{d}/{10*k+i}.jpg' for k,d in enumerate(in_out) for i in range(10)))
    g = metashift(tmp_path, 'drawn')
    assert g.table.part.value_counts().to_dict()==dict(train=26, valid=4, test=10) and g.images.given
    assert g.table.equals(metashift(tmp_path, 'drawn', seed=9).table) # the numbers are SubpopBench's own
    rng = np.random.RandomState(42)
    test = rng.choice(np.arange(40), size=10, replace=False)
    assert set(np.flatnonzero(g.table.part=='test'))==set(test)
    assert (_draw_parts(g.table)==g.table.part).all()
    mine = metashift(tmp_path, lambda df: np.where(df.index%2, 'train', 'test'))
    assert mine.counts().sum().to_dict()==dict(train=16, valid=4, test=20)
    with pytest.raises(ValueError, match="No split of MetaShift is called 'draw', did you mean 'drawn'"): metashift(tmp_path, 'draw')

def test_metashift_keeps_one_copy_to_train_on(tmp_path):
    sofa,bed = ('train/cat/cat(sofa)','train/cat/cat(bed)')
    put(tmp_path, *(f'{sofa}/{i}.jpg' for i in range(4)), *(f'{bed}/{i}.jpg' for i in range(3,8)),
        *(f'train/dog/dog(bike)/{i}.jpg' for i in range(3,8)),
        'test/cat/cat(shelf)/90.jpg', 'test/cat/cat(box)/90.jpg', 'test/dog/dog(shelf)/91.jpg')
    with pytest.warns(ProxyWarning, match=r'1 images of .* are in two contexts, the first is train/cat/cat\(sofa\)/3.jpg'):
        g = metashift(tmp_path)
    n = g.counts()
    assert n.loc['cat, bed'].sum()==5 and n.loc['cat, sofa'].sum()==3 and n.loc['dog, bike'].sum()==5
    assert n.loc[['cat, box','cat, shelf'],'test'].tolist()==[1,1] # in test an image counts in either context

def test_metashift_of_other_forms(tmp_path):
    put(tmp_path, *(f'{d}/{10*k+i}.jpg' for k,d in enumerate(in_out) for i in range(5)), 'train/cat/loose/1.jpg')
    with pytest.warns(ProxyWarning, match=r"1 names in .*cat do not look like 'cat\(indoor\)' and are left out, the first is 'loose'"):
        assert len(metashift(tmp_path).table)==20
    mixed = put(tmp_path/'mixed', 'train/cat/1.jpg', 'val_out_of_domain/dog/1.jpg')
    (mixed/'imageID_to_group.pkl').write_bytes(b'')
    with pytest.raises(ValueError, match='imageID_to_group.pkl cannot be read as it is: its groups are in a pickle'): metashift(mixed)

# ImageNet-9

nine = ['00_dog','01_bird','02_wheeled vehicle']
def in9(top, *dirs, n=2): return put(top, *(f'{d}/{c}/fg_{i}.JPEG' for d in dirs for c in nine for i in range(n)))

@pytest.fixture
def backgrounds(tmp_path):
    return in9(tmp_path, 'in9l/train','in9l/val', *(f'bg_challenge/{o}/val' for o in ('original','mixed_rand','no_fg')))

def test_imagenet9(backgrounds):
    for o in nine: (backgrounds/'bg_challenge'/'fg_mask'/'val'/o).mkdir(parents=True)
    np.save(backgrounds/'bg_challenge'/'fg_mask'/'val'/nine[0]/'1.npy', np.zeros(2))
    g = imagenet9(backgrounds)
    assert {k:len(o) for k,o in g.tests().items()}==dict(mixed_rand=6, no_fg=6, original=6)
    assert set(g.table.label)=={'dog','bird','wheeled vehicle'} and g.counts().loc['wheeled vehicle, in9l'].tolist()==[2,2,0]
    assert g.tests('group')['wheeled vehicle, mixed_rand'].file.tolist()==[
        f'bg_challenge/mixed_rand/val/02_wheeled vehicle/fg_{i}.JPEG' for i in (0,1)]
    parts = {(o.file.relative_to(g.path).parts[:2],o.part) for o in g.images.df.itertuples()}
    assert parts=={(('in9l','train'),'train'), (('in9l','val'),'valid')}
    assert list(imagenet9(backgrounds, variations='mixed_rand').tests())==['mixed_rand']
    with pytest.raises(ValueError, match="has no variation called 'fg_mask'"): imagenet9(backgrounds, variations='fg_mask')

def test_imagenet9_says_what_is_missing_and_what_is_meant(backgrounds, tmp_path):
    with pytest.raises(ValueError, match="has no variation called 'mixed_rnd', did you mean 'mixed_rand'"):
        imagenet9(backgrounds, variations=['mixed_rnd'])
    with pytest.raises(ValueError, match="has no folder to train on called 'in9', did you mean 'in9l'"):
        imagenet9(backgrounds, train='in9')
    with pytest.raises(FileNotFoundError, match='has no folder with `train` and `val` to train on.*in9l.tar.gz'):
        imagenet9(backgrounds/'bg_challenge')
    in9(backgrounds, 'original/train', 'original/val', n=3)
    with pytest.raises(ValueError, match='has 2 folders to train on: choose one with `train` from in9l, original'):
        imagenet9(backgrounds)
    assert imagenet9(backgrounds, train='original').counts().train.sum()==9
    in9(backgrounds, 'more/original/val')
    with pytest.raises(ValueError, match='test sets of the same name among .*more/original'): imagenet9(backgrounds, train='in9l')
    with pytest.raises(FileNotFoundError, match='has no test set, which is a folder with `val` alone'):
        imagenet9(in9(tmp_path/'alone', 'in9l/train', 'in9l/val'))

# Spawrious

def test_tasks_of_spawrious_are_those_of_its_code():
    "`_get_combinations` and `build_combination` of aengusl/spawrious, at 651e904, for a task of either kind"
    def has(task, **kwargs): return {(o.part,o.env,o.location,o.label):o.most for o in spawrious_folders(task, **kwargs).itertuples()}
    dogs = ('bulldog','dachshund','labrador','corgi')
    want = {}
    for env,(main,rest) in enumerate(((3072,96),(2756,412))):
        for dog,a,b in zip(dogs, ('jungle','mountain','snow','desert'), ('mountain','snow','desert','jungle')):
            want |= {('train',env,a,dog):main, ('train',env,'beach',dog):rest, ('test',env,b,dog):pd.NA}
    got = has('o2o_hard')
    assert got.keys()==want.keys() and all(got[k] is v or got[k]==v for k,v in want.items())
    where = {(part,dog):{k[2] for k in has('m2m_medium') if (k[0],k[3])==(part,dog)} for part in ('train','test') for dog in dogs}
    assert where=={
        **{('train',o):{'beach','snow'} for o in dogs[:2]}, **{('train',o):{'mountain','desert'} for o in dogs[2:]},
        **{('test',o):{'desert','mountain'} for o in dogs[:2]}, **{('test',o):{'beach','snow'} for o in dogs[2:]}}
    assert {k[1] for k in has('m2m_medium')}=={0} and set(has('m2m_easy').values())=={3168, pd.NA}
    assert has('o2o_easy', total=100)['train',1,'desert','bulldog']==87

@pytest.mark.parametrize('task', spawrious_tasks)
def test_no_dog_is_tested_where_it_was_trained(task):
    df = spawrious_folders(task)
    for dog,o in df.groupby('label'):
        assert not set(o.location[o.part=='train'])&set(o.location[o.part=='test'])
    assert set(df.location)<={'desert','jungle','dirt','mountain','snow','beach'}
    assert not df.duplicated(['part','env','location','label']).any()

def test_spawrious(tmp_path):
    put(tmp_path/'spawrious224', *(f'{o.env}/{o.location}/{o.label}/{i:02}.png'
                                   for o in spawrious_folders('o2o_hard').itertuples() for i in range(12)))
    g = spawrious(tmp_path, total=10)
    n = g.counts()
    assert n.loc['bulldog, jungle',['train','valid']].sum()==9+8 and n.loc['bulldog, beach',['train','valid']].sum()==1+2
    assert n.loc['bulldog, mountain','test']==24
    assert list(g.tests())==['bulldog, mountain','corgi, jungle','dachshund, snow','labrador, desert']
    first = g.table.file[g.table.file.str.startswith('0/jungle/bulldog')]
    assert first.tolist()==[f'0/jungle/bulldog/{i:02}.png' for i in range(9)]
    assert not set(g.table.file[g.table.part=='test'])&set(g.table.file[g.table.part!='test'])
    assert g.images.df.part.value_counts().to_dict()==dict(train=64, valid=16)
    words = '16 of 24 folders of .* have fewer images than the task needs, the first is 0/jungle/bulldog with 12 of 3072'
    with pytest.warns(ProxyWarning, match=words):
        assert spawrious(tmp_path).counts().loc['bulldog, beach',['train','valid']].sum()==24

def test_spawrious_refuses(tmp_path):
    put(tmp_path/'spawrious224', *(f'0/{o}/bulldog/1.png' for o in ('jungle','beach')))
    words = "22 of 24 folders of 'o2o_hard' are not in .*, the first is 0/mountain/bulldog: download this task"
    with pytest.raises(FileNotFoundError, match=words): spawrious(tmp_path)
    with pytest.raises(ValueError, match="no task 'o2o_hrd', did you mean 'o2o_hard'"): spawrious(tmp_path, 'o2o_hrd')
    with pytest.raises(ValueError, match='no task None'): spawrious_folders(None)
    with pytest.raises(ValueError, match='total=0 should be 1 or more'): spawrious(tmp_path, total=0)
    with pytest.raises(TypeError, match='total=2.5 should be a whole number'): spawrious(tmp_path, total=2.5)

# BAR

def test_bar(tmp_path):
    put(tmp_path, *(f"{'train' if i<5 else 'test'}/{o}_{i}.jpg" for o in ('climbing','pole vaulting') for i in range(7)))
    g = bar(tmp_path)
    assert g.counts().to_dict('index')=={o:dict(train=4, valid=1, test=2) for o in ('climbing','pole vaulting')}
    assert g.attributes==[] and list(g.table)==['file','part','label','group'] and list(g.tests())==['climbing','pole vaulting']
    put(tmp_path, 'train/stats.png')
    with pytest.warns(ProxyWarning, match="1 names in .*train do not look like 'climbing_0.jpg' .* the first is 'stats.png'"):
        assert len(bar(tmp_path).table)==14

# UrbanCars

kinds = [f'obj-{a}_bg-{b}_co_occur_obj-{c}' for a in ('urban','country') for b in ('urban','country') for c in ('urban','country')]
folders = ('bg-0.95_co_occur_obj-0.95/train','bg-0.5_co_occur_obj-0.5/val','bg-0.5_co_occur_obj-0.5/test')

def test_urbancars(tmp_path):
    put(tmp_path/'urbancars', *(f'{d}/{k}/{i:03}{end}' for d in folders for k in kinds for i in range(2)
                                for end in ('.jpg','_mask.png','_co_occur_obj_mask.png')))
    (tmp_path/'urbancars'/folders[0]/kinds[0]/'boxes.pkl').write_bytes(b'never read')
    g = urbancars(tmp_path)
    assert (g.counts().to_numpy()==2).all() and g.counts().shape==(8,3) and g.table.file.str.endswith('.jpg').all()
    for o in g.table.itertuples():
        assert f'/obj-{o.label}_bg-{o.bg}_co_occur_obj-{o.co_occur_obj}/' in o.file
        assert o.group==f'{o.label}, bg {o.bg}, co_occur_obj {o.co_occur_obj}'
    assert {k:len(o) for k,o in g.tests('bg').items()}==dict(country=8, urban=8)

def test_urbancars_in_one_folder(tmp_path):
    one = 'bg-0.95_co_occur_obj-0.95'
    put(tmp_path, *(f'{one}/{d}/{k}/{i:03}.jpg' for d in ('train','val','test') for k in kinds for i in range(2)))
    words = f'There is no folder .*bg-0.5_co_occur_obj-0.5/val: `val` is in {one}; pass it as `test`'
    with pytest.raises(FileNotFoundError, match=words):
        urbancars(tmp_path)
    assert (urbancars(tmp_path, test=one).counts().to_numpy()==2).all()
    with pytest.raises(FileNotFoundError, match=f'`train` is in {one}; pass it as `train`'):
        urbancars(tmp_path, train='bg-0.9_co_occur_obj-0.9')
    shutil.rmtree(tmp_path/one/'test')
    with pytest.raises(FileNotFoundError, match='There is no folder .*/test: generate it'): urbancars(tmp_path, test=one)
    put(tmp_path, f'{one}/test/{kinds[0]}/0.jpg', f'{one}/test/extra/0.jpg')
    with pytest.warns(ProxyWarning, match="do not look like 'obj-urban_.* the first is 'extra'"):
        assert urbancars(tmp_path, test=one).counts().test.sum()==1

# by name

def test_by_name(birds):
    assert grouped_data('waterbirds', birds, n_per_class=1).counts().train.sum()==2
    assert grouped_data(lambda path, seed: (path,seed), 'here', seed=3)==('here',3)
    words = "No dataset with groups is called 'waterbird', did you mean 'waterbirds'.*Available: waterbirds, celeba"
    with pytest.raises(ValueError, match=words): grouped_data('waterbird', birds)
    assert grouped.keys()==grouped_sets.keys() and list(grouped_table().index)==list(grouped)
    assert grouped_sets['waterbirds'].open(birds).df.equals(waterbirds(birds).images.df) # as a known data set is opened
    with pytest.raises(ValueError, match="'bar' cannot be downloaded automatically: get it from https://github.com/alinlab/BAR"):
        grouped_sets['bar'].open()

def made(top, name):
    "A folder of the layout of this data set"
    files = dict(
        metashift=[f'{d}/{10*k+i}.jpg' for k,d in enumerate(in_out) for i in range(10)],
        spawrious=[f'{o.env}/{o.location}/{o.label}/{i}.png' for o in spawrious_folders('o2o_hard').itertuples() for i in range(10)],
        bar=[f"{'train' if i<5 else 'test'}/{o}_{i}.jpg" for o in ('climbing','pole vaulting') for i in range(7)],
        urbancars=[f'{d}/{k}/{i}.jpg' for d in folders for k in kinds for i in range(2)])
    if name=='celeba': return face_lists(put(top))
    if name=='imagenet9': return in9(top, 'in9l/train', 'in9l/val', 'bg_challenge/mixed_rand/val')
    if name!='waterbirds': return put(top, *files[name])
    put(top, *(o[1] for o in bird_rows()))
    bird_csv(top, bird_rows())
    return top

@pytest.mark.parametrize('name', grouped)
def test_the_command_line_opens_them_by_name(tmp_path, name):
    "The published split and the labels, without the test part; in a configuration as in `open_images`"
    from proxy_attention.experiment.config import Config, changed
    from proxy_attention.experiment.inputs import images_of
    top,few = made(tmp_path, name),dict(total=10) if name=='spawrious' else {}
    own = grouped[name](top, **few).images
    got = open_images(f'{name}:{top}', **few)
    assert got.df.equals(own.df) and set(got.df.part)=={'train','valid'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning) # there are fewer dogs than the task needs
        read = images_of(changed(Config(), path=f'{name}:{top}', pretrained=False))
        assert read.df.file.tolist()==grouped[name](top).images.df.file.tolist()
    assert set(grouped_sets[name].own)==takes(grouped[name])-{'path','**'}, 'these arguments can be given to open_images, too'
    with pytest.raises(TypeError, match='has no argument `fn_col`'): open_images(f'{name}:{top}', fn_col='a')

@pytest.mark.parametrize('name', grouped)
@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
def test_published_test_images_with_their_groups(tmp_path, name):
    "As many of each group as in `tests()`; what is no such data set is none"
    top = made(tmp_path, name)
    df,sets = published_tests(f'{name}:{top}'),grouped[name](top).tests()
    assert df.groupby('group').size().to_dict()=={k:len(o) for k,o in sets.items()} and all(o.is_file() for o in df.file)
    assert published_tests(top) is None and published_tests(name) is None and published_tests('mnist:here') is None
    with pytest.raises(FileNotFoundError, match='There is no folder'): published_tests(f'{name}:{top}/nothing')

def test_the_worst_group_of_a_run_is_that_of_the_data_set(tmp_path):
    "By hand: the accuracy of each group of the table; on the command line, in the table of the run"
    from proxy_attention.experiment.compare import compare_folder
    from proxy_attention.experiment.learner import config_learner
    from proxy_attention.experiment.inputs import images_of, test_loader, tests_of
    from proxy_attention.experiment.scores import score_of
    from proxy_attention.experiment.train import train_folder
    from proxy_attention.experiment.config import from_toml
    what = f"waterbirds:{made(tmp_path/'birds', 'waterbirds')}"
    kw = dict(arch='test_resnet', pretrained=False, size=32, workers=0, bs=2, augment='none', epochs=2, say=lambda o: None)
    run = train_folder(what, tmp_path/'runs', recipe='none', tests=f'test={what}', **kw)
    cfg = from_toml(run/'config.toml')
    assert cfg.tests=={'test':what}
    images = images_of(cfg)
    table,learn = tests_of(cfg, images)['test'],config_learner(cfg, images, seed=1)
    with learn.no_bar():
        got = score_of(learn, test_loader(learn, table))
        preds = learn.get_preds(dl=learn.dls.test_dl(table.file.map(images.path.joinpath).tolist()))[0].argmax(1)
    right = pd.Series([learn.dls.vocab[int(o)] for o in preds])==table.label
    assert got['groups']==pytest.approx(right.groupby(table.group).mean().to_dict()) and len(got['groups'])>2
    said = pd.read_csv(run/'tests.csv').iloc[0]
    assert said.n==len(table) and said.worst_group in set(table.group) and said.worst<=said.accuracy
    cmp = compare_folder(what, 'no proxy', 1, tests=f'test={what}', out=tmp_path/'runs', **kw)
    df = pd.read_csv(cmp/'comparison.csv')
    assert df[df.test=='test'].worst_group.isin(set(table.group)).all()
    with pytest.raises(FileNotFoundError, match='There is no folder'):
        train_folder(what, tmp_path/'runs', tests='test=waterbirds:nowhere', **kw)

def test_their_own_arguments_and_misspelt_names(tmp_path):
    assert set(open_images(f"celeba:{made(tmp_path, 'celeba')}", label='Male', attributes='Young').df.label)=={'Male','not Male'}
    with pytest.raises(TypeError, match="has no argument `labell`, did you mean 'label'"): open_images(f'celeba:{tmp_path}', labell='Male')
    with pytest.raises(FileNotFoundError, match="is called 'waterbird', did you mean 'waterbirds'"): open_images('waterbird')
    with pytest.raises(ValueError, match="give its folder as 'waterbirds:folder'"): open_images('waterbirds')
