"""A round trip with a hospital's archive: films come in, drafts go back into the same study, marked as nobody's reviewed word.

    archive.py      one study after the other, fetched from an archive (DICOMweb)
    listen.py       films that an archive or a modality sends (C-STORE), drafted when their study is quiet
    study.py        files of a study → films that can be read → the files that are stored
    destination.py  where results go: an archive by DICOMweb, or an application entity by C-STORE
    outbox.py       results that wait for a lost link

Not a medical device. What is logged calls a study by a running number and a short hash, and quotes nothing from a header.
"""

import logging

# these two would log UIDs, titles and what a peer says; what matters is said here, in our own words
for _name in ("pynetdicom", "dicomweb_client"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

log = logging.getLogger("emrrg.hospital")
