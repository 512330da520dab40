"""Header: public/hvm/"""
