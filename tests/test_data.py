"Bad input gets a sentence; odd images do not stop a run"
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.images import ImageSet
from proxy_attention.data.loaders import refuse_among

@pytest.fixture
def photos(tmp_path, path):
    shutil.copytree(path/'train', tmp_path/'photos')
    return tmp_path/'photos'

def test_split_is_drawn_once_and_stratified(photos):
    a,b,c = ImageFolder(photos, seed=1), ImageFolder(photos, seed=1), ImageFolder(photos, seed=2)
    assert a.df.equals(b.df) and not a.df.equals(c.df)
    share = a.df.assign(v=a.df.part=='valid').groupby('label').v.mean()
    assert share.between(.15, .25).all()

def test_given_split_is_kept(path):
    df = ImageFolder(path).df
    assert (df.part==df.file.map(lambda f: f.parent.parent.name)).all()

def test_train_without_valid_leaves_test_alone(path, tmp_path):
    shutil.copytree(path/'train', tmp_path/'d'/'train')
    shutil.copytree(path/'plain', tmp_path/'d'/'test')
    df = ImageFolder(tmp_path/'d').df
    assert len(df)==len(get_image_files(path/'train')) and set(df.part)=={'train','valid'}

def test_capital_names_of_parts(path, tmp_path):
    for a,b in (('train','Train'),('plain','Validation')): shutil.copytree(path/a, tmp_path/'d'/b)
    assert len(ImageFolder(tmp_path/'d').df.query('part=="train"'))==len(get_image_files(path/'train'))
    shutil.copytree(path/'plain', tmp_path/'d'/'val')
    with pytest.raises(ValueError, match='two folders for one part'): ImageFolder(tmp_path/'d')

def test_one_class_name_in_two_folders(path, tmp_path):
    for o in 'ab': shutil.copytree(path/'train'/'3', tmp_path/'d'/o/'3')
    with pytest.raises(ValueError, match="class '3' is in two folders"): ImageFolder(tmp_path/'d')

def test_a_class_may_be_called_train(tmp_path):
    for c in ('train','plane'):
        for i in range(3):
            (tmp_path/c).mkdir(exist_ok=True)
            Image.new('RGB', (9,9)).save(tmp_path/c/f'{i}.png')
    assert set(ImageFolder(tmp_path).df.label)=={'train','plane'}

def test_two_images_a_class_are_enough(tmp_path):
    for c in 'ab':
        for i in range(2):
            (tmp_path/c).mkdir(exist_ok=True)
            Image.new('RGB', (9,9)).save(tmp_path/c/f'{i}.png')
    assert sorted(ImageFolder(tmp_path).df.part)==['train']*2+['valid']*2

@pytest.mark.parametrize('spoil,words', [
    (lambda d: shutil.rmtree(d), 'There is no folder'),
    (lambda d: [shutil.rmtree(o) for o in d.iterdir()], 'There is no image'),
    (lambda d: [shutil.rmtree(o) for o in d.iterdir() if o.name!='3'], "of one class, '3'"),
    (lambda d: [o.unlink() for o in list((d/'3').iterdir())[1:]], "class '3' has a single image"),
    (lambda d: shutil.copy(next((d/'3').iterdir()), d/'loose.png'), 'are outside the class folders'),
    (lambda d: (shutil.rmtree(d), d.write_text('')), 'is a file'),
], ids=['missing','empty','one class','one image','loose','file'])
def test_folders_that_cannot_work(photos, spoil, words):
    spoil(photos)
    with pytest.raises((ValueError,OSError), match=words): ImageFolder(photos)

def test_photographs_of_a_phone_and_moving_pictures_are_told(tmp_path):
    "A tag says how to rotate, which fastai ignores; of several pictures in a file, fastai takes the first. Damage there is no damage"
    img,exif = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40,50,3), dtype=np.uint8)), Image.Exif()
    exif[0x112] = 6
    img.save(tmp_path/'turned.jpg', exif=exif)
    exif[0x112] = 1
    img.save(tmp_path/'upright.jpg', exif=exif)
    img.save(tmp_path/'phone.mpo', save_all=True, append_images=[img])
    for o in ('moving.gif','pages.tif'): img.save(tmp_path/o, save_all=True, append_images=[img.rotate(90), img.rotate(45)])
    raw = (tmp_path/'pages.tif').read_bytes()
    at = int.from_bytes(raw[4:8], 'little')
    at += 2+12*int.from_bytes(raw[at:at+2], 'little') # where the first page says where the second is
    (tmp_path/'late.tif').write_bytes(raw[:at]+(at-4).to_bytes(4, 'little')+raw[at+4:])
    assert PILImage.create(tmp_path/'turned.jpg').size==PILImage.create(tmp_path/'late.tif').size==(50,40)
    wrong = check_images(sorted(tmp_path.iterdir()))
    assert {o.file.name:o.problem for o in wrong.itertuples()}=={'turned.jpg':'rotated', 'moving.gif':'animated', 'pages.tif':'animated'}
    assert '3 pictures' in wrong.detail.iloc[0] and 'unrotated' in wrong.detail.iloc[2]

@pytest.mark.parametrize('labels,parts,words', [
    (['a','b',None,'b'], None, 'have no label, the first is .*2.png .its label is None'), (['a',np.nan,'b','b'], None, 'its label is nan'),
    (['a',pd.NA,'b','b'], None, 'have no label'), (['a',' ','b','b'], None, 'have no label'),
    (['a','b'], None, 'There are 2 labels for 4 images'), (['a','b']*2, ['train','valid'], 'There are 2 parts for 4 images'),
    (['a','b']*2, ['train','train','valid','test'], "another part than 'train' and 'valid', the first is .*3.png, in 'test'.*add_test"),
    (['a','b']*2, ['Train','Valid']*2, "in 'Train'")])
def test_lists_that_would_train_on_something_else(tmp_path, labels, parts, words):
    "An image of the test part was trained on, and a missing label was a class called nan"
    with pytest.raises(ValueError, match=words): ImageSet(tmp_path, [tmp_path/f'{i}.png' for i in range(4)], labels, parts)

def test_a_file_that_is_listed_twice_is_on_one_side(tmp_path):
    with pytest.raises(ValueError, match='1 files are listed more than once, the first is .*0.png'):
        ImageSet(tmp_path, [tmp_path/f'{i%3}.png' for i in range(4)], 'aabb')
    with pytest.raises(ValueError, match='has no group .its group is <NA>'):
        ImageSet(tmp_path, [tmp_path/f'{i}.png' for i in range(4)], 'abab', groups=['x','y',pd.NA,'z'])

def test_cells_without_a_column_are_refused(photos):
    "A label with a comma and no quotes lost its end, without a word"
    files = [o.relative_to(photos).as_posix() for o in get_image_files(photos)]
    (photos/'t.csv').write_text('file,label\n'+''.join(f'{o},{o[0]}, large\n' for o in files))
    says = "have more cells than its first line has names: .* quotes around a name or label that contains ','"
    with pytest.raises(ValueError, match=says):
        ImageTable(photos/'t.csv')
    (photos/'t.csv').write_text('file,label\n'+''.join(f'{o},"{o[0]}, large"\n' for o in files))
    assert set(ImageTable(photos/'t.csv').counts().index)=={f'{o[0]}, large' for o in files}
    (photos/'t.csv').write_text('file,label\n'+''.join(f'{o},{o[0]},\n' for o in files)) # as some spreadsheets end a line
    table = ImageTable(photos/'t.csv')
    assert len(table)==len(files) and set(table.counts().index)=={o[0] for o in files}

def test_all_kinds_of_images_train(photos, quiet):
    "Grey, palette, CMYK, alpha, 16-bit and a single pixel: counted, read as RGB, trained on and masked"
    a = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40,50,3), dtype=np.uint8))
    d = photos/'3'
    for mode,name in (('L','grey.png'),('P','palette.gif'),('CMYK','cmyk.jpg'),
                      ('RGBA','alpha.png'),('LA','grey_alpha.png'),('1','bits.png')):
        a.convert(mode).save(d/name)
    Image.fromarray(np.full((30,30), 5000, np.uint16)).save(d/'deep.png')
    Image.new('RGB', (1,1)).save(d/'dot.png')
    (d/'cut.jpg').write_bytes(b'\xff\xd8\xff\xe0broken')
    folder = ImageFolder(photos)
    wrong = check_images(folder.df.file)
    assert wrong.problem.value_counts().to_dict()==dict(transparent=2, CMYK=1, tiny=1, unreadable=1) | {'16-bit':1}
    folder.leave_out(wrong.file[wrong.problem=='unreadable'])
    dls = folder.dataloaders(item_tfms=Resize(32), bs=16, num_workers=0)
    learn = Learner(dls, digits_net(), cbs=ProxyAttention(select='all', start=1, p=1.))
    quiet(learn, 'fit', 2, 1e-3)
    assert learn.proxy_attention.history.made.sum()>0

def test_nothing_is_written_among_images(path):
    "Not among those of validation either; where names are no files, nobody is kept from the folder he stands in"
    by_table = ImageFolder(path).dataloaders(num_workers=0)
    by_list = ImageDataLoaders.from_folder(path, train='train', valid='valid', num_workers=0)
    for dls in (by_table, by_list):
        for o in ('train','valid','valid/3/deep'):
            with pytest.raises(ValueError, match='among the images'): refuse_among(path/o, dls)
        refuse_among(path.parent/'elsewhere', dls)
    files = {f.name:f for f in get_image_files(path/'train')}
    names = DataBlock((ImageBlock,CategoryBlock),
                      get_x=lambda row: files[row['name']], get_y=lambda row: files[row['name']].parent.name)
    refuse_among('runs', names.dataloaders(pd.DataFrame(dict(name=list(files))), num_workers=0))

def test_digits_never_writes_over(tmp_path):
    (tmp_path/'mine.txt').write_text('keep')
    with pytest.raises(FileExistsError, match='is not empty'): digits(tmp_path)

def test_digits_repeat(tmp_path, fingerprint):
    a,b,c = (digits(tmp_path/n, seed=s, n=60) for n,s in (('a',1),('b',1),('c',2)))
    read = lambda p: {o.relative_to(p):o.read_bytes() for o in p.rglob('*.*')}
    assert read(a)==read(b) and read(a)!=read(c)

# ---- a column that looks like a split

def table_with(tmp_path, **cols):
    "A CSV of six images with further columns"
    files = [tmp_path/f'{i}.png' for i in range(6)]
    for f in files: Image.new('RGB', (8,8)).save(f)
    pd.DataFrame(dict(file=[f.name for f in files], label=['a','b']*3, **cols)).to_csv(tmp_path/'x.csv', index=False)
    return tmp_path/'x.csv'

@pytest.mark.parametrize('values', [['Train ','train','TEST','train','valid','val'], ['training']*4+['validation']*2,
    ['train']*4+['testing']*2])
def test_a_column_of_parts_that_is_not_named_is_mentioned(tmp_path, values):
    csv = table_with(tmp_path, what=values)
    with pytest.warns(ProxyWarning, match="has a column 'what' with the values .* name it with `valid_col`"): ImageTable(csv)

@pytest.mark.parametrize('values', [['train']*6, ['0']*4+['1']*2, ['true','false']*3, ['train','']*3, ['train','tree']*3, ['val','test']*3])
def test_other_columns_are_not(tmp_path, values):
    ImageTable(table_with(tmp_path, what=values)) # a warning is an error here
    if '0' in values: assert ImageTable(tmp_path/'x.csv', valid_col='what').df.part.tolist()==['train']*4+['valid']*2

def test_labels_may_be_called_train_and_valid(tmp_path):
    assert set(ImageTable(table_with(tmp_path, what=['train','valid']*3), label_col='what').df.label)=={'train','valid'}

def test_a_saved_split_is_no_table_of_images(few, tmp_path):
    ImageFolder(few).save(tmp_path)
    with pytest.raises(ValueError, match='is the split of a run: give the images themselves, and pass this file as `split`'):
        ImageTable(tmp_path/'folds.csv')
    assert len(ImageTable(tmp_path/'folds.csv', path=few, valid_col='part'))==len(ImageFolder(few))

def test_accuracy_on_a_folder_without_images(path, tmp_path):
    learn = digits_learner(path)
    for o in (tmp_path, tmp_path/'nowhere', str(tmp_path)):
        with pytest.raises(ValueError, match='contains no image: give a folder with one folder of images per class'): accuracy_on(learn, o)

@pytest.mark.parametrize('n,words', [
    (5,'n=5 should be 20 or more'), (20,'Of 20 digits'), (3000,'n=3000, but there are 1,797 digits'), (2.5,'whole number')])
def test_numbers_of_digits_that_cannot_be(tmp_path, n, words):
    with pytest.raises((ValueError,TypeError), match=words): digits(tmp_path/'d', n=n)
    assert not (tmp_path/'d').exists()
